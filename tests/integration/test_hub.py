"""Push and pull with the real client over HTTP, against a local Hub."""

import filecmp
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import (
    ROOT,
    TINY_SIZES,
    assert_one_sentence,
    call_script,
    draw_xray,
    run_script,
    save_tiny_body,
)
from hub_server import Repository
from safetensors.torch import load_file, save_file

from pneumonia_hf import Predictor
from pneumonia_hf.cli import check_inputs
from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation.scores import hash_weights
from pneumonia_hf.hub import fetch_folder, to_hub_id
from pneumonia_hf.models.backbones import backbone_of
from pneumonia_hf.models.build import ModelConfig, build_model
from pneumonia_hf.models.model_card import make_card
from pneumonia_hf.models.model_folder import MODEL_FILES
from pneumonia_hf.reporting.numbers import read_interval, to_text


@pytest.fixture
def hub_environment(hub, tmp_path) -> dict[str, str]:
    return {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": "hf_of_me",
        "HF_HOME": str(tmp_path / "hf_home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


def push(model, repo_id, environment, *flags):
    return run_script(
        "push_to_hub.py", "--model", model, "--repo_id", repo_id, *flags, **environment
    )


def test_model_is_pushed_in_one_private_commit(hub, hub_environment, tiny_model):
    done = push(tiny_model, "me/x", hub_environment)
    assert done.returncode == 0, done.stderr
    repository = hub.repositories["me/x"]
    sha, files = repository.commits[-1]
    assert f"/me/x/commit/{sha}" in done.stdout
    assert repository.private
    assert len(repository.commits) == 2  # the Hub's initial commit, and ours
    expected = set(MODEL_FILES) - {
        "reports.json", "xray_cnn.py", "gate.safetensors", "quantization.json"
    }  # fmt: skip
    (wheel,) = (name for name in files if name.endswith(".whl"))
    assert files.keys() == expected | {".gitattributes", "handler.py", "requirements.txt", wheel}
    assert "checkpoints" in {path.name for path in tiny_model.iterdir()}


@pytest.mark.slow
def test_pulled_model_scores_like_the_pushed_one(
    hub, own_client, hub_environment, tiny_model, tmp_path
):
    from pneumonia_hf.demo.answers import name_model

    assert push(tiny_model, "me/x", hub_environment).returncode == 0
    sha = hub.repositories["me/x"].commits[-1][0]
    image = tmp_path / "one.png"
    draw_xray(0, ill=True).save(image)
    tables = []
    for number, model in enumerate((tiny_model, "me/x", f"me/x@{sha}")):
        table = tmp_path / f"{number}.csv"
        flags = ["--model", model, "--input", image, "--output", table]
        if model == "me/x":  # once as a user would
            done = run_script("predict.py", *flags, **hub_environment)
        else:
            done = call_script("predict.py", *flags)
        assert done.returncode == 0, done.stderr
        tables.append(table)
    assert filecmp.cmp(tables[0], tables[1], shallow=False)
    assert filecmp.cmp(tables[0], tables[2], shallow=False)
    # What the app shows beside each answer.
    names = ("me/x", f"me/x@{sha}", tiny_model)
    shown = [name_model(Predictor.from_pretrained(one)) for one in names]
    assert shown == [f"me/x ({sha[:12]})", f"me/x@{sha} ({sha[:12]})", tiny_model.name]


def test_push_deletes_the_reports_of_the_previous_model(hub, hub_environment, tiny_model, tmp_path):
    measured = tmp_path / "measured"
    shutil.copytree(tiny_model, measured, ignore=shutil.ignore_patterns("checkpoints"))
    (measured / "reports.json").write_text("[]")
    for model, expected in ((measured, True), (tiny_model, False)):
        done = push(model, "me/x", hub_environment)
        assert done.returncode == 0, done.stderr
        assert ("reports.json" in hub.repositories["me/x"].commits[-1][1]) == expected


@pytest.mark.slow
def test_each_revision_has_its_own_weights(hub, hub_environment, two_saved_models, tmp_path):
    from safetensors.numpy import load

    shas = []
    for model in two_saved_models:
        assert push(model, "me/x", hub_environment, "--public").returncode == 0
        shas.append(hub.repositories["me/x"].commits[-1][0])
    assert not hub.repositories["me/x"].private
    code = (
        "import sys; from pneumonia_hf.hub import fetch_folder;"
        "print(fetch_folder(sys.argv[1]) / 'model.safetensors')"
    )
    for model, revision in zip(two_saved_models, shas, strict=True):
        done = subprocess.run(
            [sys.executable, "-c", code, f"me/x@{revision}"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=os.environ | hub_environment,
        )
        fetched = Path(done.stdout.strip()).read_bytes()
        kept = load((model / "model.safetensors").read_bytes())
        assert all(np.array_equal(kept[name], value) for name, value in load(fetched).items())


@pytest.fixture(scope="module")
def two_saved_models(tmp_path_factory, tiny_model, xray_folder):
    from helpers import save_tiny_body, train_tiny

    root = tmp_path_factory.mktemp("other")
    body = save_tiny_body("convnextv2-tiny", root / "body")
    other = train_tiny("convnextv2-tiny", body, xray_folder, root / "run", num_train_epochs=1)
    return tiny_model, other


def test_refused_pushes_are_one_sentence(hub, hub_environment, tiny_model, tmp_path):
    assert_one_sentence(push(tiny_model, "you/x", hub_environment), "403", "--repo_id")
    for model, repo_id, word in (
        (tiny_model, "no-owner", "owner/name"),
        (tmp_path, "me/x", "holds no saved model"),
    ):
        done = call_script("push_to_hub.py", "--model", model, "--repo_id", repo_id)
        assert_one_sentence(done, word)
    wrong_token = hub_environment | {"HF_TOKEN": "hf_wrong"}
    assert_one_sentence(push(tiny_model, "me/x", wrong_token), "401", "hf auth login")
    offline = hub_environment | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    assert_one_sentence(push(tiny_model, "me/x", offline), "The Hub cannot be reached")
    hub.broken = True
    assert_one_sentence(push(tiny_model, "me/x", hub_environment), "try again later")
    assert hub.repositories == {}


def test_invalid_card_is_refused_before_a_repository_is_created(
    hub, hub_environment, tiny_model, tmp_path
):
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model, ignore=shutil.ignore_patterns("checkpoints"))
    card = model / "README.md"
    card.write_text(card.read_text().replace("base_model: ", "base_model: no valid id/"))
    assert_one_sentence(push(model, "me/x", hub_environment), "card", "base_model")
    assert hub.repositories == {}


def test_inaccessible_models_are_one_sentence(hub, hub_environment, tmp_path):
    image = tmp_path / "one.png"
    draw_xray(0, ill=True).save(image)

    def predict(model, **environment):
        flags = ["--model", model, "--input", image, "--output", "-"]
        return run_script("predict.py", *flags, **hub_environment | environment)

    assert_one_sentence(predict("me/nothing"), "the Hub has no such model")
    assert_one_sentence(predict("runs/my--run"), "does not exist")
    assert_one_sentence(predict("me/x", HF_ENDPOINT="http://127.0.0.1:9"), "cannot be reached")
    hub.repositories["me/x"] = Repository(private=False)
    hub.repositories["me/x"].commit("first", {"config.json": b"{}"})
    assert_one_sentence(predict("me/x@v9"), "no revision 'v9'")


def test_card_has_the_measured_numbers_and_no_local_path(tiny_model, xray_folder):
    run = json.loads((tiny_model / "run.json").read_text())
    card = make_card(tiny_model)
    text = str(card)
    assert to_text(read_interval(run["validation"]["metrics"]["auroc"])) in text
    assert f"{run['validation']['config']['threshold']:.4f}" in text
    assert card.data.base_model == "facebook/convnextv2-tiny-22k-224"
    assert card.data.license == "cc-by-nc-4.0"  # like the pretrained weights
    assert "not a medical device" in text
    assert str(xray_folder.parent) not in text
    assert "None" not in text.split("---")[1]


def publish_pickled(hub, model, repo_id: str, shards: int = 1, weights=None) -> None:
    """Put a model folder on the Hub as older ones are there, with pickled weights."""
    weights = weights or load_file(model / "model.safetensors")
    names = [f"pytorch_model-{n + 1:05}-of-{shards:05}.bin" for n in range(shards)]
    parts = {name: dict(list(weights.items())[n::shards]) for n, name in enumerate(names)}
    files = {path.name: path.read_bytes() for path in model.iterdir() if path.is_file()}
    del files["model.safetensors"]
    for name, part in parts.items():
        buffer = io.BytesIO()
        torch.save(part, buffer)
        files[name if shards > 1 else "pytorch_model.bin"] = buffer.getvalue()
    if shards > 1:
        index = {"weight_map": {key: name for name, part in parts.items() for key in part}}
        files["pytorch_model.bin.index.json"] = json.dumps(index | {"metadata": {}}).encode()
    hub.repositories[repo_id] = Repository(private=False)
    hub.repositories[repo_id].commit("first", files)


def test_pickled_weights_score_like_safetensors(hub, own_client, tiny_model, tmp_path):
    model = shutil.copytree(
        tiny_model, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoints")
    )
    save_file({"mean": torch.zeros(1)}, model / "unused.safetensors")  # no weights, as a gate
    publish_pickled(hub, model, "me/old")
    publish_pickled(hub, model, "me/parts", shards=2)
    image = draw_xray(0, ill=True)
    expected = Predictor.from_pretrained(model).log_odds([image])
    hashes = {hash_weights(Predictor.from_pretrained(model))}
    for name in ("me/old", "me/parts"):
        found = Predictor.from_pretrained(name)
        assert found.log_odds([image]) == expected
        hashes.add(hash_weights(found))
    assert len(hashes) == 3 and "" not in hashes  # of different files
    # Of two kinds of weights, the safe ones are taken, and no more is downloaded.
    pickled = hub.repositories["me/old"]
    pickled.commit("both", {"model.safetensors": (model / "model.safetensors").read_bytes()})
    folder = fetch_folder("me/old")
    assert (folder / "model.safetensors").exists() and not list(folder.glob("*.bin"))


def test_the_address_of_a_page_is_taken_as_its_model(hub, own_client, tiny_model):
    publish_pickled(hub, tiny_model, "me/x")
    sha = hub.repositories["me/x"].commits[-1][0]
    for address, name in (
        (f"{hub.url}/me/x", "me/x"),
        (f"{hub.url}/me/x/tree/main", "me/x@main"),
        (f" {hub.url}/me/x/blob/{sha}/config.json?raw=1\n", f"me/x@{sha}"),
    ):
        check_inputs([address])
        assert Predictor.from_pretrained(address).name == name
        assert ModelConfig(weights=address).weights == name
    assert to_hub_id("https://huggingface.co/me/x/") == "me/x"
    assert to_hub_id("huggingface.co/me/x/tree/v1") == "me/x@v1"
    assert to_hub_id("runs/x") == "runs/x"
    for wrong in ("https://example.com/me/x", "https://huggingface.co/datasets/me/x"):
        with pytest.raises(UserError, match="--compare"):
            check_inputs([wrong], flag="--compare")


def test_pickled_code_is_not_run(hub, own_client, tiny_model, tmp_path):
    class Code:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    weights = load_file(tiny_model / "model.safetensors")
    publish_pickled(hub, tiny_model, "me/code", weights=weights | {"more": Code()})
    with pytest.raises(UserError, match="me/code cannot be loaded"):
        Predictor.from_pretrained("me/code")
    with pytest.raises(UserError, match="No usable weights"):
        build_model(ModelConfig("convnextv2-tiny", "me/code", 64))
    assert not (tmp_path / "ran").exists()


def test_backbone_is_the_same_from_pickled_weights(hub, own_client, tmp_path):
    for name, shards in (("vit-base", 1), ("efficientnet-lite0", 2)):
        body = save_tiny_body(name, tmp_path / name)
        publish_pickled(hub, body, f"me/{name}", shards)
        config = ModelConfig(name, f"me/{name}", TINY_SIZES[name])
        found, expected = build_model(config)[0], build_model(replace(config, weights=str(body)))[0]
        head = backbone_of(expected).head  # new each time
        for key, value in expected.state_dict().items():
            assert key.startswith(head) or torch.equal(found.state_dict()[key], value), key


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the Hub's client
def test_training_pushes_what_it_saved_and_asks_for_the_login_first(
    hub, own_client, tiny_model, xray_folder, tmp_path, monkeypatch
):
    calls = []

    def run_recipe(recipe, arguments):
        calls.append(list(hub.requests))
        return tiny_model

    monkeypatch.setattr("pneumonia_hf.training.train.run_recipe", run_recipe)
    flags = ["--data_dir", xray_folder, "--output_dir", tmp_path / "run", "--push_to_hub"]
    flags += ["--hub_model_id", "me/trained"]
    done = call_script("train.py", *flags)
    assert done.returncode == 0, done.stderr
    assert calls == [["GET /api/whoami-v2"]]
    repository = hub.repositories["me/trained"]
    assert f"/commit/{repository.commits[-1][0]} (private)." in done.stdout
    assert "model.safetensors" in repository.commits[-1][1] and repository.private
    call_script("train.py", *flags[:-1], "me/open", "--hub_private_repo", "false")
    assert not hub.repositories["me/open"].private
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert_one_sentence(call_script("train.py", *flags), "401", "hf auth login")
    assert len(calls) == 2  # nothing is trained that could not be pushed


QUICK = ["--precision", "fp32", "--cpu_threads", 1, "--report_to", "none"]
QUICK += ["--bootstrap_resamples", 20, "--threshold_resamples", 50, "--attribution_images", 1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the Hub's client
def test_checkpoints_of_a_training_that_pushes_stay_here(hub, own_client, xray_folder, tmp_path):
    flags = ["--backbone", "xray-cnn", "--weights", "none", "--image_size", 32, "--max_steps", 2]
    flags += ["--data_dir", xray_folder, "--output_dir", tmp_path / "run", *QUICK]
    flags += ["--push_to_hub", "--hub_model_id", "me/trained"]
    done = call_script("train.py", *flags)
    assert done.returncode == 0, done.stderr[-2000:]
    repository = hub.repositories["me/trained"]
    assert len(repository.commits) == 2  # the Hub's initial commit, and ours
    assert not [name for name in repository.commits[-1][1] if "checkpoint" in name]


@pytest.mark.slow
def test_training_starts_from_pickled_weights_on_the_hub(hub, own_client, tmp_path, xray_folder):
    publish_pickled(hub, save_tiny_body("vit-base", tmp_path / "body"), "me/old")
    flags = ["--backbone", "vit-base", "--weights", "me/old", "--image_size", 32, *QUICK]
    flags += ["--data_dir", xray_folder, "--output_dir", tmp_path / "run", "--max_steps", 1]
    done = call_script("train.py", *flags)
    assert done.returncode == 0, done.stderr[-2000:]
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (run["model"]["base_model"], run["model"]["license"]) == ("me/old", "other")
