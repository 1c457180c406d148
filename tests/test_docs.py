"""README and docs: links, file names, commands, Python blocks, tables and numbers are right."""

import gc
import json
import os
import re
import shlex
import sys
from contextlib import ExitStack, suppress
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from helpers import ROOT, call_script, draw_folder, draw_xray

from pneumonia_hf import EvaluationConfig, evaluate_predictor
from pneumonia_hf.audit.run import CHECKS
from pneumonia_hf.cli import OLD_NAMES
from pneumonia_hf.data.sources import SOURCES
from pneumonia_hf.evaluation.perturbations import PERTURBATIONS
from pneumonia_hf.inference.attribution_methods import METHODS
from pneumonia_hf.models.backbones import BACKBONES
from pneumonia_hf.statistics.metrics import METRICS
from pneumonia_hf.training.augment import AUGMENTATIONS

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").glob("*.md")),
        ROOT / "benchmarks" / "README.md",
        ROOT / "train_scripts" / "accelerate" / "README.md",
    ]
}
FOLDERS = "train_scripts|eval_reports|pneumonia_hf|tests|benchmarks|docs"
SCRIPTS = sorted(path.name for path in (ROOT / "train_scripts").glob("[a-z]*.py"))
# Flags of other programs: torchrun's, Slurm's and docker-like ones that pages mention in prose.
OTHER_FLAGS = {
    *("--nnodes", "--nproc_per_node", "--node_rank", "--master_addr", "--master_port"),
    *("--standalone", "--nodes", "--ntasks-per-node", "--gpus-per-node", "--signal", "--project"),
    "--logdir",
}
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


def list_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def list_commands(text: str) -> list[list[str]]:
    """Return the words of each command in the bash blocks of a page."""
    commands = []
    for block in list_blocks(text, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            # `bash -c '...'` holds a command in one word.
            words = [part for word in words for part in (word.split() if " -" in word else [word])]
            if words:
                commands.append(words)
    return commands


def find_script(words: list[str]) -> int | None:
    """Return the place of the script of ours that a command runs."""
    found = [
        n for n, word in enumerate(words) if re.fullmatch(rf"(?:{FOLDERS})/\w+\.(py|sh)", word)
    ]
    return found[0] if found else None


ALL_COMMANDS = [(page, words) for page, text in PAGES.items() for words in list_commands(text)]
SCRIPT_COMMANDS = [
    (page, words)
    for page, words in ALL_COMMANDS
    if find_script(words) is not None and not words[find_script(words)].startswith("docs/")
]


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


# ---------------------------------------------------------------------------------- the pages


def test_readme_is_a_first_page():
    assert len(PAGES["README.md"].splitlines()) < 150
    assert PAGES["README.md"].index("## Quickstart") < 1500  # before anything is claimed
    linked = set(re.findall(r"\((docs/\w+\.md)\)", PAGES["README.md"]))
    assert linked == {page for page in PAGES if page.startswith("docs/")}
    assert (ROOT / "docs" / "app.png").stat().st_size < 300_000


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {
                re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles
            }, link


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page):
    text = re.sub(r"--output(?:_dir)?\s+(?:\\\s+)?\S+", "", PAGES[page])  # what a command writes
    text = re.sub(r"https?://\S+", "", text)
    for name in re.findall(rf"(?<![\w/])(?:{FOLDERS})/[\w./-]*\w", text):
        if "NAME" not in name:
            assert (ROOT / name).exists(), name
    for name in re.findall(r"`(\w+\.(?:cff|toml|txt|yaml))`", text):
        places = (ROOT, ROOT / "train_scripts" / "configs", ROOT / "train_scripts" / "accelerate")
        assert name in {"best.yaml"} or any((one / name).exists() for one in places), name


def test_names_in_the_walks_through_the_code_exist():
    text = PAGES["docs/architecture.md"]
    walks = text[text.index("## From an X-ray") : text.index("## Configuration")]
    names = re.findall(r"`([a-z_]+(?:\.[a-z_]+)*)\.(\w+)`", walks)
    assert len(names) > 20
    for module, name in names:
        source = (ROOT / "pneumonia_hf" / f"{module.replace('.', '/')}.py").read_text()
        assert re.search(rf"^(?:def|class) {name}\b", source, re.MULTILINE), f"{module}.{name}"


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


def test_every_script_has_a_command_on_some_page():
    shown = {Path(words[find_script(words)]).name for _, words in SCRIPT_COMMANDS}
    assert set(SCRIPTS) <= shown


def test_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {words[words.index("make") + 1] for _, words in ALL_COMMANDS if "make" in words}
    for text in PAGES.values():
        named |= set(re.findall(r"`make ([a-z-]+)", text))
    assert {"demo", "test", "train"} <= named <= targets


def test_flags_in_the_text_exist(monkeypatch):
    known = set(OTHER_FLAGS) | {f"--{name}" for name in OLD_NAMES}
    for script in SCRIPTS:
        known |= set(re.findall(r"--\w+", call_script(script, "--help").stdout))
    from accelerate.commands.launch import launch_command_parser

    known |= {flag for one in launch_command_parser()._actions for flag in one.option_strings}
    for path in (ROOT / "benchmarks").glob("*.py"):
        known |= set(re.findall(r'"(--\w+)"', path.read_text(encoding="utf-8")))
    for page, text in PAGES.items():
        prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        flags = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", prose))
        assert flags <= known, f"{page}: {sorted(flags - known)}"


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


# ---------------------------------------------------------------------------------- tables


def test_table_of_models_has_a_row_for_every_backbone():
    rows = re.findall(r"^\| `([\w-]+)` \|(.*)$", PAGES["docs/models.md"], re.MULTILINE)
    rows = {name: rest for name, rest in rows if name in BACKBONES}
    assert rows.keys() == BACKBONES.keys()
    for name, backbone in BACKBONES.items():
        assert backbone.hub_id is None or f"`{backbone.hub_id}`" in rows[name], name


def test_tables_name_every_check_operation_source_and_method():
    for check in CHECKS:
        assert f"`{check}`" in PAGES["docs/audit.md"], check
    for operation in AUGMENTATIONS:
        assert f"`--augment_{operation}`" in PAGES["docs/augmentation.md"], operation
    for perturbation in PERTURBATIONS:
        assert f"`{perturbation}`" in PAGES["docs/evaluation.md"], perturbation
    for kind in SOURCES.keys() - {"folder"}:
        assert f"`{kind}:" in PAGES["docs/data.md"], kind
    for method in METHODS:
        assert f"`{method}`" in PAGES["docs/space.md"], method
    for metric in METRICS:
        assert f"`{metric}`" in PAGES["docs/evaluation.md"], metric


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_published_numbers_are_those_of_the_reports(page):
    reports = ["default-internal-test", "default-rsna-adult"]
    reports += ["dinov2-small-internal-test", "dinov2-small-rsna-adult"] * (page != "README.md")
    for name in reports:
        report = json.loads((ROOT / "eval_reports" / name / "report.json").read_text())
        for metric in ("auroc", "sensitivity", "specificity"):
            one = report["metrics"][metric]
            digits = 4 if metric == "auroc" and report["seen_in_test"] else 3
            value, low, high = (f"{one[key]:.{digits}f}" for key in ("value", "low", "high"))
            assert f"{value} ({low} to {high})" in PAGES[page], (name, metric)


def test_the_finding_says_what_the_reports_say_of_maps_and_of_adults():
    reports = {
        name: json.loads((ROOT / "eval_reports" / name / "report.json").read_text())
        for name in ("default-internal-test", "default-rsna-adult", "earlier-default-rsna-adult")
    }
    finding = PAGES["README.md"].partition("## The finding")[2].partition("\n## ")[0]
    found = reports["default-internal-test"]["faithfulness"]
    none = found["best"] is None and reports["default-rsna-adult"]["faithfulness"]["best"] is None
    for page in (finding, PAGES["docs/results.md"]):
        assert none == ("**No attribution method passes its tests**" in page)
    (gradcam,) = (one for one in found["results"] if one["method"] == "gradcam")
    gain = gradcam["gain_over_centre"]
    numbers = [f"{gain['value']:.2f} ({gain['low']:.2f} to {gain['high']:.2f})"]
    for name in ("default-rsna-adult", "earlier-default-rsna-adult"):
        (view,) = (one for one in reports[name]["stratified"] if one["column"] == "view")
        numbers += [f"{view['pooled']['value']:.3f}", f"{view['within']['value']:.3f}"]
    assert [one for one in numbers if one not in " ".join(finding.split())] == []


def test_citation_names_this_version():
    import yaml

    import pneumonia_hf

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == pneumonia_hf.__version__
    assert citation["license"] == "Apache-2.0"
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()


def test_pages_name_no_local_path():
    for page, text in PAGES.items():
        for place in ("/home/", "/work/", "/root/"):
            assert place not in text, page
        with suppress(KeyError):
            assert os.environ["HOME"] not in text, page
