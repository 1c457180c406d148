"""The files of a report."""

import json
import os
from pathlib import Path

import pytest
from matplotlib.figure import Figure as Drawing

from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation.report import FILES
from pneumonia_hf.files import read_json
from pneumonia_hf.reporting import write as writing
from pneumonia_hf.reporting.page import Figure, Page, Section, Summary, to_html, to_markdown
from pneumonia_hf.reporting.write import check_folder, write_page


def test_older_report_is_kept_without_overwrite(tmp_path):
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(UserError, match="--overwrite"):
        check_folder(tmp_path, False, FILES)
    check_folder(tmp_path, True, FILES)


PLAIN = Summary("All is well.", [("AUROC", "0.81 (0.72 to 0.90)")], ["It is small."], ["So so."])


def make_page(*sections: Section, title: str = "A title", summary: Summary = PLAIN) -> Page:
    return Page(title, sections, summary)


def draw() -> Drawing:
    drawing = Drawing(figsize=(1, 1))
    drawing.subplots().plot([0, 1])
    return drawing


@pytest.mark.figures
def test_only_figures_that_were_drawn_are_shown(tmp_path):
    section = Section("Figures", (Figure("a_b", draw), Figure("c", draw, has_xrays=True)))
    files = writing.save_figures([section.body[0]], tmp_path)
    html, text = to_html(make_page(section), files), to_markdown(make_page(section), files)
    assert html.count("<figure") == 1 and 'alt="a b" src="data:image/svg+xml;base64,' in html
    assert "![a b](a_b.png)" in text and "c.png" not in text
    assert "holds no X-ray" in html
    files = writing.save_figures(section.body, tmp_path)
    html = to_html(make_page(section), files)
    assert "data:image/png;base64," in html and "holds X-rays of patients" in html
    assert {one.name for one in tmp_path.iterdir()} == {"a_b.png", "a_b.svg", "c.png"}


def test_a_report_replaces_an_older_one_wholly_or_not_at_all(tmp_path, monkeypatch):
    folder = tmp_path / "report"
    old = make_page(Section("Old", ("x", Figure("gone", draw)), {"a": 1}))
    write_page(old, folder)
    (folder / "own.txt").write_text("of the user")
    before = {one.name: one.read_bytes() for one in folder.iterdir()}
    assert before.keys() == {"report.md", "report.html", "report.json", "gone.png", "gone.svg",
                             "own.txt"}  # fmt: skip
    new = make_page(Section("New", ("y",), {"a": 2}))

    def fail(*_, **__):
        raise OSError("the disk is full")

    for place, function in ((writing, "to_html"), (writing.os, "replace")):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
            patch.setattr(place, function, fail)
            write_page(new, folder, older=("gone.png",))
        assert {one.name: one.read_bytes() for one in folder.iterdir()} == before
        assert [one.name for one in tmp_path.iterdir()] == ["report"]
    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(writing, "to_html", fail)
        write_page(new, tmp_path / "another")
    assert not (tmp_path / "another").exists()
    moved, replace = [], os.replace

    def note(old, new):
        moved.append(old)
        replace(old, new)

    monkeypatch.setattr(writing.os, "replace", note)
    write_page(new, folder, older=("gone.png", "gone.svg", "never.png"))
    assert {one.name for one in folder.iterdir()} == before.keys() - {"gone.png", "gone.svg"}
    assert read_json(folder / "report.json", None) == {"a": 2}
    assert json.loads((folder / "report.json").read_text()) == {"a": 2}
    assert moved and all(one.is_relative_to(folder) for one in moved)  # it may be a mount point
    monkeypatch.chdir(tmp_path)
    write_page(new, Path("."))
    assert (tmp_path / "report.json").exists()
