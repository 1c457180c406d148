"""README and docs: links, file names, commands, Python blocks, tables and numbers are right."""

import gc
import json
import re
import sys
from contextlib import ExitStack
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from doc_pages import PAGES, SCRIPT_COMMANDS, find_script, list_blocks, list_commands
from helpers import ROOT, call_script, draw_folder, draw_xray

from pneumonia_hf import EvaluationConfig, evaluate_predictor
from pneumonia_hf.audit.run import CHECKS
from pneumonia_hf.data.sources import SOURCES
from pneumonia_hf.evaluation.perturbations import PERTURBATIONS
from pneumonia_hf.inference.attribution_methods import METHODS
from pneumonia_hf.models.backbones import BACKBONES
from pneumonia_hf.statistics.metrics import METRICS

# What makes training and evaluation quick: fewer resamples and attribution maps.
QUICK_TRAINING = {
    "attribution_images": 1,
    "bootstrap_resamples": 20,
    "threshold_resamples": 20,
    "cpu_threads": 1,
}


def evaluate_quickly(predictor, dataset, data="data", split="all", config=None, *rest):
    """evaluate_predictor with few resamples and few perturbed copies."""
    config = config or EvaluationConfig()
    copies = min(config.robustness_images, 8)
    # Attribution has tests of its own.
    config = replace(config, resamples=20, robustness_images=copies, attribution_images=0)
    return evaluate_predictor(predictor, dataset, data, split, config, *rest)


# Commands that tests run as they stand: those that are quick and need no network.
QUICK = ("predict.py", "evaluate_model.py", "audit_data.py", "preview_augmentation.py")
RUN_PAGES = ("docs/audit.md", "docs/augmentation.md", "docs/evaluation.md", "docs/inference.md")


def name_command(one: tuple[str, list[str]]) -> str:
    page, words = one
    return f"{page}: {' '.join(words)}"[:90]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, tiny_model, xray_folder) -> Path:
    """A folder like the repository, with data, models and files of the names that pages use."""
    folder = tmp_path_factory.mktemp("workspace")
    for name in ("pneumonia_hf", "train_scripts", "docs", "benchmarks", "tests", "README.md"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "eval_reports").mkdir()
    for report in (ROOT / "eval_reports").iterdir():
        (folder / "eval_reports" / report.name).symlink_to(report)
    (folder / "DATA").symlink_to(xray_folder)
    external = draw_folder(folder / "EXTERNAL", patients=12, seed=5000)
    files = sorted(path.relative_to(external) for path in external.rglob("*.png"))
    rows = [f"{file},{'AP' if n % 2 else 'PA'}" for n, file in enumerate(files)]
    (external / "metadata.csv").write_text("\n".join(["file_name,view", *rows]))
    (folder / "NAMES").mkdir()
    for n in range(4):
        draw_xray(n, ill=bool(n % 2)).save(folder / "NAMES" / f"patient{n}_{n % 2}.png")
    for name in ("runs/NAME", "runs/A", "runs/B", "me/NAME"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(tiny_model)
    (folder / "runs" / "search").mkdir()
    recipe = ROOT / "train_scripts" / "configs" / "efficientnet-lite0.yaml"
    (folder / "runs" / "search" / "best.yaml").write_text(recipe.read_text())
    image = draw_xray(4, ill=True, size=(300, 240))
    image.save(folder / "xray.jpeg")
    save_dicom(image, folder / "xray.dcm")
    return folder


def save_dicom(image, path: Path) -> None:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.1")
    meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, UID("1.2.3")
    data.Modality, data.PhotometricInterpretation = "DX", "MONOCHROME2"
    data.Columns, data.Rows = image.size
    data.SamplesPerPixel, data.PixelRepresentation = 1, 0
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit = 7
    data.PixelData = image.tobytes()
    data.save_as(path, enforce_file_format=True)


@pytest.fixture
def inside(workspace, monkeypatch):
    """Work in the workspace, and leave the tables as they were."""
    monkeypatch.chdir(workspace)
    with ExitStack() as stack:
        for table in (BACKBONES, METRICS, SOURCES, CHECKS, METHODS, PERTURBATIONS):
            stack.enter_context(patch.dict(table))
        for module in ("pneumonia_hf", "pneumonia_hf.evaluation.run"):
            target = f"{module}.evaluate_predictor"
            stack.enter_context(patch(target, evaluate_quickly, create=True))
        yield workspace


# ---------------------------------------------------------------------------------- commands


class Parsed(Exception):
    """A script has parsed its command line, which is all that is asked of it here."""


def parse_command(words: list[str]) -> None:
    """Let the script of a command parse its flags, as it would if it were run."""
    place = find_script(words)
    script, flags = Path(words[place]), words[place + 1 :]
    if script.suffix == ".sh":  # two_machines.sh KIND FOLDER FLAGS_OF_TRAIN
        script, flags = Path("train_scripts/train.py"), [*flags[2:], "--output_dir", "x"]
    name = f"docs_{script.stem}"
    spec = spec_from_file_location(name, ROOT / script)
    module = module_from_spec(spec)
    from argparse import ArgumentParser

    parse_args = ArgumentParser.parse_args

    def parse(*arguments, **options):
        parse_args(*arguments, **options)
        raise Parsed

    def parse_recipe(*arguments, **options):
        from pneumonia_hf.cli import parse_recipe

        with patch.object(ArgumentParser, "parse_args", parse_args):
            parse_recipe(*arguments, **options)
        raise Parsed

    from pneumonia_hf.training import recipe

    parse_whole_run = recipe.parse_run

    def parse_run(*arguments, **options):
        with patch.object(ArgumentParser, "parse_args", parse_args):
            parse_whole_run(*arguments, **options)
        raise Parsed

    with (
        patch.object(recipe, "parse_run", parse_run),
        patch.object(sys, "path", [str((ROOT / script).parent), *sys.path]),
        patch.object(sys, "argv", [str(script), *flags]),
        patch.object(ArgumentParser, "parse_args", parse),
        patch.dict(sys.modules, {name: module}),
    ):
        spec.loader.exec_module(module)
        owner = sys.modules[module.main.__module__]  # a script only imports its `main`
        with ExitStack() as stack:
            if hasattr(owner, "parse_recipe"):
                stack.enter_context(patch.object(owner, "parse_recipe", parse_recipe))
            stack.enter_context(pytest.raises(Parsed))
            module.main()


@pytest.mark.parametrize("one", SCRIPT_COMMANDS, ids=name_command)
def test_commands_parse_with_the_scripts_own_flags(one, inside):
    _, words = one
    parse_command(words)
    if words[:2] == ["accelerate", "launch"]:
        from accelerate.commands.launch import launch_command_parser

        launch_command_parser().parse_args(words[2:])


def run(words: list[str]) -> str:
    """Run the script of a command in this process; return what it printed."""
    place = find_script(words)
    done = call_script(Path(words[place]).name, *words[place + 1 :])
    assert done.returncode == 0, (words, done.stderr[-2000:])
    return done.stdout


def list_quick_commands():
    """Yield the commands to run: quick ones, the first of each script on a page."""
    seen = set()
    for page, words in SCRIPT_COMMANDS:
        one = (page, Path(words[find_script(words)]).name)
        if page in RUN_PAGES and one[1] in QUICK:
            slow = one in seen or one[1] in ("audit_data.py", "preview_augmentation.py")
            yield pytest.param((page, words), marks=pytest.mark.slow if slow else ())
            seen.add(one)


@pytest.mark.parametrize("one", list(list_quick_commands()), ids=name_command)
def test_quick_commands_of_docs_run(one, inside):
    run(one[1])


def test_quickstart_of_the_readme_trains_evaluates_and_predicts(inside):
    arrays = {}
    for split, count, seed in (("train", 60, 0), ("val", 24, 200), ("test", 24, 400)):
        arrays[f"{split}_images"] = np.stack(
            [np.asarray(draw_xray(seed + n, n % 2 == 1, (64, 64))) for n in range(count)]
        )
        arrays[f"{split}_labels"] = np.arange(count)[:, None] % 2
    (inside / "mnist").mkdir()
    np.savez(inside / "mnist" / "pneumoniamnist_64.npz", **arrays)
    (block,) = (one for one in list_blocks(PAGES["README.md"], "bash") if "medmnist:64" in one)
    text = block.replace("medmnist:64", f"medmnist:64@{inside / 'mnist'}")
    commands = [words for words in list_commands(f"```bash\n{text}```") if find_script(words)]
    assert [Path(words[1]).name for words in commands] == [
        "train.py",
        "evaluate_model.py",
        "predict.py",
    ]
    for name, value in QUICK_TRAINING.items():
        commands[0] += [f"--{name}", str(value)]
    printed = [run(words) for words in commands]
    assert "The saved model is in runs/first" in printed[0]
    report = json.loads((inside / "runs" / "first-report" / "report.json").read_text())
    assert (report["split"], report["n"], report["seen_in_training"]) == ("test", 24, 0)
    assert re.search(r"drawn_xray.png,\d\.\d+,\d\.\d+,(PNEUMONIA|NORMAL|REFER)", printed[2])


# ---------------------------------------------------------------------------------- Python

SLOW_PAGES = ("docs/space.md", "docs/training.md")
PYTHON_PAGES = [
    pytest.param(page, marks=pytest.mark.slow if page in SLOW_PAGES else ())
    for page in PAGES
    if "```python" in PAGES[page]
]


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # gradio leaves event loops open
@pytest.mark.parametrize("page", PYTHON_PAGES)
def test_python_blocks_run(page, inside, request, capsys):
    text = PAGES[page]
    if "7860" in "".join(list_blocks(text, "python")):
        text = text.replace("http://127.0.0.1:7860", request.getfixturevalue("app_url"))
    quick = ", ".join(f"{name}={value}" for name, value in QUICK_TRAINING.items())
    text = text.replace("num_train_epochs=1,", f"num_train_epochs=1, {quick},")
    namespace: dict = {}
    try:
        for number, block in enumerate(list_blocks(text, "python"), start=1):
            exec(compile(block, f"<{page}, block {number}>", "exec"), namespace)
    finally:
        if "client" in namespace:
            namespace["client"].close()
        namespace.clear()
        gc.collect()  # here, where the warnings of what is left open are ignored
    if "print(" in text:
        assert capsys.readouterr().out.strip()
