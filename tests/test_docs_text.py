"""README and docs: links, file names, flags, tables and numbers are right."""

import json
import os
import re
from contextlib import suppress
from pathlib import Path

import pytest
from doc_pages import ALL_COMMANDS, FOLDERS, PAGES, SCRIPT_COMMANDS, SCRIPTS, find_script
from helpers import ROOT, call_script

from pneumonia_hf.audit.run import CHECKS
from pneumonia_hf.cli import OLD_NAMES
from pneumonia_hf.data.sources import SOURCES
from pneumonia_hf.evaluation.perturbations import PERTURBATIONS
from pneumonia_hf.inference.attribution_methods import METHODS
from pneumonia_hf.models.backbones import BACKBONES
from pneumonia_hf.statistics.metrics import METRICS
from pneumonia_hf.training.augment import AUGMENTATIONS

# Flags of other programs: torchrun's, Slurm's and docker-like ones that pages mention in prose.
OTHER_FLAGS = {
    *("--nnodes", "--nproc_per_node", "--node_rank", "--master_addr", "--master_port"),
    *("--standalone", "--nodes", "--ntasks-per-node", "--gpus-per-node", "--signal", "--project"),
    "--logdir",
}


def test_readme_is_a_first_page():
    assert len(PAGES["README.md"].splitlines()) < 150
    assert PAGES["README.md"].index("## Quickstart") < 1500  # before anything is claimed
    linked = set(re.findall(r"\((docs/\w+\.md)\)", PAGES["README.md"]))
    further = {
        f"docs/{one}" for page in linked for one in re.findall(r"\((\w+\.md)\)", PAGES[page])
    }
    assert linked | further == {page for page in PAGES if page.startswith("docs/")}
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
    numbers = []
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
