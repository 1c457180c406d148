"""The scripts as users run them, with valid and invalid input."""

import csv
import json
import re
import subprocess
import sys

import pytest
from helpers import (
    REAL_XRAYS,
    ROOT,
    assert_one_sentence,
    call_script,
    draw_folder,
    draw_xray,
    run_script,
    save_tiny_body,
)

SCRIPTS = [
    "train.py",
    "evaluate_model.py",
    "predict.py",
    "push_to_hub.py",
    "audit_data.py",
    "preview_augmentation.py",
    "search.py",
    "leave_one_site_out.py",
    "export_onnx.py",
    "recalibrate.py",
]
RECIPE = ROOT / "train_scripts" / "configs" / "convnextv2-tiny.yaml"


@pytest.fixture(scope="module")
def body(tmp_path_factory):
    return save_tiny_body("convnextv2-tiny", tmp_path_factory.mktemp("body"))


def train_flags(body, data, output) -> list:
    return [
        *("--config", RECIPE, "--weights", body, "--image_size", 64),
        *("--data_dir", data, "--output_dir", output),
        *("--num_train_epochs", 1, "--learning_rate", "3e-3", "--precision", "fp32"),
        # One thread, few resamples: the tests share busy cores.
        *("--cpu_threads", 1, "--attribution_images", 1),
        *("--bootstrap_resamples", 20, "--threshold_resamples", 50),
    ]


LAUNCHED = {"script": ["train_scripts/train.py"], "module": ["-m", "train_scripts.train"]}


# Within this process it takes a fifth of the time.
@pytest.mark.parametrize(
    "launch", ["here", *(pytest.param(one, marks=pytest.mark.slow) for one in LAUNCHED)]
)
def test_training_script_ends_with_a_model_that_predicts(launch, body, xray_folder, tmp_path):
    flags = [str(one) for one in train_flags(body, xray_folder, tmp_path / "x")]
    if launch == "here":
        done = call_script("train.py", *flags)
    else:
        command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]
        command += [*LAUNCHED[launch], *flags]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "The saved model is in" in done.stdout
    # A value of the recipe, a flag that replaces one, and a progress bar with the time left.
    run = json.loads((tmp_path / "x" / "run.json").read_text())
    assert run["training"]["weight_decay"] == 0.05
    assert run["training"]["learning_rate"] == 3e-3
    assert re.search(r"\| \d+/5 \[\d\d:\d\d<\d\d:\d\d", done.stderr)
    assert list((tmp_path / "x").rglob("events.out.tfevents.*"))
    image = tmp_path / "one.png"
    draw_xray(0, ill=True).save(image)
    flags = ["--model", tmp_path / "x", "--input", image, "--output", "-"]
    assert len(call_script("predict.py", *flags).stdout.splitlines()) == 2


@pytest.mark.slow
def test_every_script_caches_in_its_cache_dir_and_nowhere_else(body, tmp_path, monkeypatch):
    monkeypatch.setenv("PNEUMONIA_HF_CACHE", str(tmp_path / "elsewhere"))
    folder, hashes = draw_folder(tmp_path / "data", patients=10), tmp_path / "listed.txt"
    hashes.write_text("0123456789abcdef")
    flags = [*train_flags(body, folder, tmp_path / "runs"), "--max_steps", 1]
    data, out = ["--data_dir", folder], "--output_dir"
    model, report = ["--model", tmp_path / "runs" / "seed-13", *data], tmp_path / "report"
    ranges = tmp_path / "ranges.yaml"
    ranges.write_text("weight_decay: [0.01, 0.1]")
    for number, (script, arguments) in enumerate([
        ("train.py", [*flags, "--exclude_images", hashes, "--seeds", 13, 14]),
        ("evaluate_model.py", [*model, "--quick", "--resamples", 20, out, report,
                               "--external", f"x={folder}"]),
        ("recalibrate.py", model),
        ("audit_data.py", [*data, "--features", "none", out, tmp_path / "audit"]),
        ("search.py", [*flags, "--ranges", ranges, "--n_trials", 1, out, tmp_path / "search"]),
    ]):  # fmt: skip
        cache = tmp_path / f"cache-{number}"
        done = call_script(script, *arguments, "--cache_dir", cache)
        assert done.returncode == 0, (script, done.stderr)
        assert list(cache.glob("*")), script
        assert not (tmp_path / "elsewhere").exists(), script


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_lists_the_flags_and_needs_no_model(script):
    done = call_script(script, "--help")
    assert done.returncode == 0
    assert "--model" in done.stdout or "--data_dir" in done.stdout
    if script == "train.py":
        assert "--augment_clahe" in done.stdout and "--strict" in done.stdout


@pytest.mark.parametrize(
    ("script", "required"),
    {
        "train.py": ["--data_dir", "x", "--output_dir", "y"],
        "evaluate_model.py": ["--model", "x", "--data_dir", "y", "--output_dir", "z"],
        "predict.py": ["--input", "x", "--output", "-"],
        "push_to_hub.py": ["--model", "x", "--repo_id", "me/x"],
        "audit_data.py": ["--data_dir", "x", "--output_dir", "y"],
        "preview_augmentation.py": ["--data_dir", "x", "--output", "y.png"],
    }.items(),
)
def test_unknown_and_missing_flags_are_one_sentence(script, required):
    assert_one_sentence(call_script(script, *required, "--modle", "x"), "--modle")
    assert_one_sentence(call_script(script, *required[2:]), required[0].lstrip("-"))


def test_mistakes_in_names_and_folders_are_one_sentence(tmp_path):
    typo, text = tmp_path / "typo.yaml", tmp_path / "text.yaml"
    typo.write_text("learning_rat: 1.0e-4\n")
    text.write_text("a: b: c\n")
    nowhere = tmp_path / "nowhere"
    required = ["--data_dir", tmp_path, "--output_dir", tmp_path / "run"]
    output = ["--output_dir", tmp_path / "run"]
    mistakes = [
        (["--config", nowhere, *required], f"The recipe {nowhere} does not exist; check --config."),
        (["--config", text, *required], f"The recipe {text} is not a YAML file"),
        (["--learning_rat", 1, *required], "Unknown flag --learning_rat (did you mean --learning"),
        (["--config", typo, *required], "'learning_rat' (did you mean learning_rate?)."),
        (["--data_dir", nowhere, *output], f"The data folder {nowhere} does not exist; check --da"),
        (["--data_dir", f"site={nowhere}", *output], f"The data folder {nowhere} does not exist"),
        (["--data_dir", tmp_path, nowhere, *output], f"The data folder {nowhere} does not exist"),
        (["--data_dir", "ftp:x", *output], "Unknown kind of source 'ftp'"),
        (output, "The following arguments are required: --data_dir/--data-dir; --help lists"),
    ]
    for flags, message in mistakes:
        assert_one_sentence(call_script("train.py", *flags), message)
    assert not (tmp_path / "run").exists()


def test_a_mistake_ends_a_real_process_with_status_2_and_no_traceback(body, tmp_path):
    done = run_script("train.py", *train_flags(body, tmp_path / "nothing", tmp_path / "x"))
    assert_one_sentence(done, "does not exist", "--data_dir")
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.fixture
def train(body, xray_folder, tmp_path):
    """Return a function that runs train.py on `data`, with further flags."""

    def run(*changes, data=xray_folder):
        return call_script("train.py", *train_flags(body, data, tmp_path / "x"), *changes)

    return run


def test_mistakes_in_flags_are_one_sentence_each(train, tmp_path):
    assert_one_sentence(train(data=tmp_path / "nothing"), "does not exist", "--data_dir")
    assert_one_sentence(train("--backbone", "resnet-18"), "Unknown backbone", "dinov2-small")
    assert_one_sentence(train("--weights", "facebook/x"), "cannot be reached", "--weights")
    assert_one_sentence(train("--num_train_epochs", "many"), "num_train_epochs", "many")
    assert_one_sentence(train("--eval_strategy", "steps"), "eval strategy", "match")
    assert_one_sentence(train("--output_dir", RECIPE), "is a file", "--output_dir")
    assert_one_sentence(train("--output_dir", RECIPE / "x"), "cannot be made", "--output_dir")
    assert_one_sentence(train("--output_dir", ROOT), "README.md", "--output_dir")
    assert_one_sentence(train("--bf16"), "--precision bf16")
    assert_one_sentence(train("--augment_noise", "-1"), "augment_noise", "-1")
    assert_one_sentence(train("--report_to", "wandb"), "wandb")
    for name in ("seed", "split_seed", "learning_rate", "image_size", "trainable_layer_groups"):
        assert_one_sentence(train(f"--{name}", "-1"), name, "-1")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("backbone: vit-base\nlearning_rat: 1.0e-4\n", ["learning_rat", "mean learning_rate?"]),
        ("learning_rate: quick\n", ["learning_rate: quick"]),
        ("learning_rate:\n", ["learning_rate: None"]),
        ("learning_rate: [1, 2]\n", ["learning_rate"]),
        ("layer_decoy: 1\n", ["did you mean layer_decay?"]),
        ("yes: 1\n", ["unknown key 'True'"]),
        ("config: other.yaml\n", ["unknown key 'config'"]),
        ("a: b: c\n", ["YAML"]),
        (None, ["does not exist", "--config"]),
    ],
)
def test_mistakes_in_a_recipe_are_one_sentence(train, tmp_path, text, words):
    recipe = tmp_path / "recipe.yaml"
    if text is not None:
        recipe.write_text(text)
    assert_one_sentence(train("--config", recipe), *words)


def test_mistakes_in_data_are_one_sentence_each(train, tmp_path):
    single = draw_folder(tmp_path / "single", patients=8)
    for file in (single / "NORMAL").iterdir():
        file.unlink()
    assert_one_sentence(train(data=single), "holds no images")
    (single / "NORMAL").rmdir()
    assert_one_sentence(train(data=single), "no NORMAL folder")

    corrupt = draw_folder(tmp_path / "corrupt", patients=12)
    (corrupt / "PNEUMONIA" / "person77_virus_1.jpeg").write_text("text named .jpeg")
    strict = train("--strict", data=corrupt)
    assert_one_sentence(strict, "1 file(s) cannot be read", "person77_virus_1.jpeg", "--strict")
    for file in (corrupt / "NORMAL").iterdir():
        file.write_text("no image")
    assert_one_sentence(train(data=corrupt), "No image of NORMAL", "can be read")
    assert not (tmp_path / "x" / "config.json").exists()


def test_unreadable_file_is_reported_and_left_out_of_training(train, tmp_path):
    corrupt = draw_folder(tmp_path / "corrupt", patients=12)
    (corrupt / "PNEUMONIA" / "person77_virus_1.jpeg").write_text("text named .jpeg")
    done = train(data=corrupt)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "unreadable: 1 file cannot be read" in done.stdout
    assert (tmp_path / "x" / "config.json").exists()


def test_missing_inputs_of_the_other_scripts_are_one_sentence(tiny_model, tmp_path):
    common = ["--model", tiny_model]
    done = call_script("predict.py", *common, "--input", tmp_path / "no", "--output", "-")
    assert done.returncode == 2
    assert done.stdout.splitlines()[1].endswith("/no does not exist.,")
    (tmp_path / "empty").mkdir()
    done = call_script("predict.py", *common, "--input", tmp_path / "empty", "--output", "-")
    assert_one_sentence(done, "No images in")
    done = call_script("evaluate_model.py", *common, "--data_dir", tmp_path, "--output_dir", "x")
    assert_one_sentence(done, "neither train/")


def test_recipes_name_known_backbones_and_keys():
    from pneumonia_hf.cli import parse_recipe
    from pneumonia_hf.data.load import DataConfig
    from pneumonia_hf.models.backbones import BACKBONES
    from pneumonia_hf.models.build import ModelConfig
    from pneumonia_hf.training.augment import AugmentConfig
    from pneumonia_hf.training.train import XrayTrainingArguments

    recipes = sorted((ROOT / "train_scripts" / "configs").glob("*.yaml"))
    recipes = [recipe for recipe in recipes if recipe.stem != "search"]  # ranges, not a recipe
    assert {recipe.stem for recipe in recipes} == set(BACKBONES)
    for recipe in recipes:
        flags = ["--config", str(recipe), "--data_dir", "x", "--output_dir", "y"]
        kinds = [DataConfig, ModelConfig, AugmentConfig, XrayTrainingArguments]
        _, model, _, _ = parse_recipe(kinds, flags)
        assert model.backbone == recipe.stem


@pytest.mark.skipif(not REAL_XRAYS.exists(), reason="the real X-rays are not beside this checkout")
def test_default_model_separates_real_full_size_xrays(tmp_path):
    table = tmp_path / "out.csv"
    flags = ["--input", REAL_XRAYS / "kaggle_val", "--output", table]
    done = call_script("predict.py", *flags)
    assert done.returncode == 0, done.stderr
    with table.open() as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 16
    right = sum(
        (float(row["probability"]) >= float(row["threshold"])) == ("/PNEUMONIA/" in row["file"])
        for row in rows
    )
    assert right >= 13
