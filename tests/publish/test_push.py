"""What goes up, in one commit, and what never does; the client asks a Hub on this machine."""

import json
import os
import random
import re
import shutil
import signal
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from doc_pages import list_blocks
from helpers import ROOT, draw_xray
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from xray_files import make_dicom

from pneumonia_hf import Predictor, push_model, read_xray
from pneumonia_hf.errors import HubError, UserError
from pneumonia_hf.hub import fetch_folder
from pneumonia_hf.models.model_folder import DEFAULT_MODEL, ENSEMBLE_FILE, MODEL_FILES
from pneumonia_hf.publish.push import check_privacy, collect_files, is_ours

REPORT = ROOT / "eval_reports" / "default-nih-adult"
KILLS = int(os.environ.get("KILLED_PUSHES", 3))  # more take minutes
pytestmark = [
    pytest.mark.usefixtures("own_client"),
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # of the Hub's client
]


@pytest.fixture
def model(tmp_path) -> Path:
    return shutil.copytree(DEFAULT_MODEL, tmp_path / "model")


@pytest.fixture
def light(model) -> Path:
    """A model whose weights are few bytes, where nothing loads them."""
    (model / "model.safetensors").write_bytes(b"weights")
    return model


@pytest.fixture
def ensemble(tmp_path) -> Path:
    folder = tmp_path / "ensemble"
    for name in ("seed-1", "seed-2"):
        shutil.copytree(DEFAULT_MODEL, folder / name)
    point = {"threshold": 0.4, "refer_low": 0.3, "refer_high": 0.6, "temperature": 1.5}
    settings = {"members": ["seed-1", "seed-2"], **point, "metrics": {}}
    (folder / ENSEMBLE_FILE).write_text(json.dumps(settings))
    return folder


def files_of(hub, repo_id="me/x") -> dict[str, bytes]:
    return hub.repositories[repo_id].commits[-1][1]


def test_the_same_content_makes_no_second_commit_and_only_the_tag(hub, light):
    first = push_model(light, "me/x")
    assert first.is_new and first.is_private and hub.repositories["me/x"].private
    again = push_model(light, "me/x", tag="v1")
    assert not again.is_new and again.revision == first.revision
    repository = hub.repositories["me/x"]
    assert len(repository.commits) == 2  # the Hub's own first one, and ours
    assert repository.tags == {"v1": first.revision}
    assert not push_model(light, "me/x", tag="v1").is_new  # the tag is there already
    config = json.loads((light / "config.json").read_text())
    (light / "config.json").write_text(json.dumps(config | {"more": 1}))
    with pytest.raises(HubError, match="its tag v1 stays at the one before"):
        push_model(light, "me/x", tag="v1")
    with pytest.raises(HubError, match="has a tag v1 of an older revision"):
        push_model(light, "me/x", tag="v1")
    assert push_model(light, "me/x", tag="v2").revision == repository.commits[-1][0]
    assert repository.tags["v1"] == first.revision != repository.tags["v2"]


def test_files_of_an_earlier_push_are_deleted_and_those_of_the_user_stay(hub, light):
    push_model(light, "me/x")
    old = "pneumonia_hf-0.1-py3-none-any.whl"
    own = {"notes/config.json": b"{}", "mine.md": b"x"}
    hub.repositories["me/x"].commit("by hand", {old: b"x", **own})
    (light / "gate.safetensors").unlink()
    push_model(light, "me/x")
    files = files_of(hub)
    assert "gate.safetensors" not in files and old not in files
    assert {*own, ".gitattributes"} <= files.keys()
    assert is_ours("seed-1/config.json", {"seed-1/config.json", "seed-1/run.json"})


def test_nothing_of_patients_or_users_is_pushed(hub, model, tmp_path):
    for planted in ("xray.png", "person1_virus_1.jpeg", "checkpoints/x.png", ".env", "log.txt",
                    "predictions.csv", "patients.json", "examples.png"):  # fmt: skip
        (model / planted).parent.mkdir(exist_ok=True)
        (model / planted).write_bytes(b"planted")
    report = shutil.copytree(REPORT, tmp_path / "report")
    numbers = json.loads((report / "report.json").read_text())
    numbers["unreadable"] = ["planted.dcm: damaged"]
    numbers["findings"] = [{"check": "x", "verdict": "fail", "text": "planted.png is alike"}]
    (report / "report.json").write_text(json.dumps(numbers))
    for planted in ("examples.png", "examples.svg", "xray.png", "report.html", "report.md"):
        (report / planted).write_bytes(b"planted")
    push_model(model, "me/x", report=report)
    files = files_of(hub)
    figures = {"roc_curve.png", "calibration.svg", "phantom.png"}
    assert {f"report/{name}" for name in ("report.json", *figures)} <= files.keys()
    assert not [name for name, content in files.items() if b"planted" in content]
    assert not [name for name in files if "predictions" in name or "examples" in name]
    allowed = {*MODEL_FILES, "handler.py", "requirements.txt", ".gitattributes"}
    others = {name for name in files if not name.startswith("report/")} - allowed
    assert [name.endswith(".whl") for name in others] == [True]
    shown = json.loads(files["report/report.json"])
    assert shown["metrics"]["auroc"] == numbers["metrics"]["auroc"]
    assert "mined labels" in files["README.md"].decode()


@pytest.mark.parametrize(
    "text",
    [
        "/home/ann/xrays/p1.png",
        "shards:/home/ann/x/a.tar",
        "file:///home/ann/x",
        "/mnt/pacs/p1.dcm",
        "C:\\\\Users\\\\ann",
        "hf_" + 30 * "a",
    ],
)
def test_a_path_or_token_in_a_file_ends_the_push_before_anything_is_sent(hub, light, text):
    run = json.loads((light / "run.json").read_text())
    (light / "run.json").write_text(json.dumps(run | {"comment": f"see {text}"}))
    with pytest.raises(HubError, match=r"^run.json holds (a token|the local path)"):
        push_model(light, "me/x")
    assert not hub.repositories
    check_privacy({"README.md": b"see https://example.com/home/x and (docs/a/b) and 1/2/3"})


def test_a_report_on_other_weights_is_refused(model, tmp_path):
    with pytest.raises(UserError, match="is no report on this model's weights; check --report"):
        push_model(model, "me/x", report=ROOT / "eval_reports" / "dinov2-small-rsna-adult")
    with pytest.raises(UserError, match="is no report on this model's weights"):
        push_model(model, "me/x", report=tmp_path)


def test_an_ensemble_is_pushed_as_one_and_loaded_as_one(hub, ensemble):
    pushed = push_model(ensemble, "me/pair", tag="v1")
    assert len(hub.repositories["me/pair"].commits) == 2
    files = files_of(hub, "me/pair")
    assert {ENSEMBLE_FILE, "seed-1/model.safetensors", "seed-2/gate.safetensors"} <= files.keys()
    assert "seed-1/README.md" not in files
    image = draw_xray(0, ill=True)
    local, found = Predictor.from_pretrained(ensemble), Predictor.from_pretrained("me/pair@v1")
    assert found.is_ensemble and len(found.networks) == 2 and found.temperature == 1.5
    assert found.predict(image) == local.predict(image)
    card = ModelCard(files["README.md"].decode())
    assert "| Threshold on P(PNEUMONIA) | 0.4000 |" in card.text
    assert card.data.license == "apache-2.0" and 'from_pretrained("me/pair")' in card.text
    assert pushed.revision == hub.repositories["me/pair"].tags["v1"]
    # A member less: its files are deleted.
    settings = json.loads((ensemble / ENSEMBLE_FILE).read_text())
    (ensemble / ENSEMBLE_FILE).write_text(json.dumps(settings | {"members": ["seed-2"]}))
    push_model(ensemble, "me/pair")
    assert not [name for name in files_of(hub, "me/pair") if name.startswith("seed-1/")]
    for bad in ("../x", "/tmp/x", 3):
        (ensemble / ENSEMBLE_FILE).write_text(json.dumps(settings | {"members": [bad]}))
        with pytest.raises(UserError, match="is no folder in"):
            push_model(ensemble, "me/pair")


def test_the_card_is_valid_names_real_ids_only_and_its_examples_run(
    hub, model, tmp_path, monkeypatch, capsys
):
    push_model(model, "me/x")
    text = files_of(hub)["README.md"].decode()
    card = ModelCard(text)
    card.validate()
    assert "THIS_REPOSITORY" not in text
    data = card.data.to_dict()
    assert data["base_model"] == "timm/tf_efficientnet_lite0.in1k" and "datasets" not in data
    name, results = model_index_to_eval_results(data["model-index"])
    assert name == "pneumonia-hf" and {one.dataset_type for one in results} == {"unknown"}
    assert any(one.metric_type == "roc_auc" and one.metric_value > 0.9 for one in results)
    for heading in ("## Intended use", "## Operating point", "## Licence", "## Limits"):
        assert heading in text
    image = draw_xray(4, ill=True, size=(300, 240))
    image.save(tmp_path / "xray.jpeg")
    (tmp_path / "xray.dcm").write_bytes(make_dicom(np.asarray(image) * 16))
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for block in list_blocks(card.text, "python"):
        exec(block, namespace)
    assert "Prediction(label=" in capsys.readouterr().out
    scores = {one["label"]: one["score"] for one in namespace["classify"]("xray.jpeg")}
    (expected,) = Predictor.from_pretrained(model).probabilities([read_xray("xray.jpeg")])
    assert scores["PNEUMONIA"] == pytest.approx(expected, abs=1e-5)


def test_pull_downloads_neither_reports_nor_exports(hub, model):
    push_model(model, "me/x", report=REPORT)
    folder = fetch_folder("me/x")
    assert not (folder / "report").exists() and (folder / "model.safetensors").exists()
    assert not list(folder.glob("*.whl"))


# ------------------------------------------------------------------- pushes that do not end well


@pytest.fixture
def changing(light):
    """Return a function that changes all that is pushed of a model, and returns it."""

    def change() -> dict[str, bytes]:
        (light / "model.safetensors").write_bytes(os.urandom(1_000_000))
        config = json.loads((light / "config.json").read_text())
        (light / "config.json").write_text(json.dumps(config | {"more": random.random()}))
        found = collect_files(light, "me/x", None)
        return {name: one if isinstance(one, bytes) else one.read_bytes()
                for name, one in found.items()}  # fmt: skip

    return change


def is_old_or_whole(hub, old: dict[str, bytes], new: dict[str, bytes]) -> bool:
    files = {name: one for name, one in files_of(hub).items() if name != ".gitattributes"}
    return files in (old, new)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="it needs fork")
def test_a_push_that_is_killed_leaves_the_old_revision(hub, light, changing):
    old = changing()
    push_model(light, "me/x")
    old = changing()
    requests = -len(hub.requests)
    push_model(light, "me/x")  # with what changes alone, as those that are killed
    requests += len(hub.requests)
    chance = random.Random(13)
    kept = 0
    for _ in range(KILLS):
        new, before = changing(), len(hub.requests)
        pid = fork_and_push(light)
        number, ended = chance.randrange(requests + 1), 0
        while len(hub.requests) < before + number and not ended:
            time.sleep(0.001)
            ended = os.waitpid(pid, os.WNOHANG)[0]
        time.sleep(chance.uniform(0, 0.02))
        if not ended:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        time.sleep(0.1)  # the server ends the request that it had
        assert is_old_or_whole(hub, old, new)
        kept += files_of(hub)["config.json"] == old["config.json"]
        push_model(light, "me/x")  # the next one is complete
        assert is_old_or_whole(hub, new, new)
        old = new
    print(f"{kept} of {KILLS} killed pushes left the old revision, the others the new one.")
    assert kept


def fork_and_push(model: Path) -> int:
    """Push in another process that has all imports already; return its id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a fork beside the server's threads
        pid = os.fork()
    if pid == 0:
        try:
            push_model(model, "me/x")
        finally:
            os._exit(0)
    return pid


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["500", "drop", "lost", "slow"])
def test_a_fault_at_any_request_leaves_the_old_revision_or_the_whole_new_one(
    hub, light, changing, fault, monkeypatch
):
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))  # of retries
    old = changing()
    push_model(light, "me/x", tag="v0")
    requests = len(hub.requests)
    failed = 0
    for number in range(requests):
        new = changing()
        hub.faults = {len(hub.requests) + number: fault}
        try:
            push_model(light, "me/x", tag=f"{fault}-{number}")
        except HubError as error:
            assert re.search("try again|The Hub cannot be reached", str(error)), error
            failed += 1
        assert is_old_or_whole(hub, old, new), number
        old = new if files_of(hub)["config.json"] == new["config.json"] else old
    assert bool(failed) == (fault != "slow")
