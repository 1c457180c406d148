"""A report as Markdown and as HTML."""

import json

import pytest
from matplotlib.figure import Figure as Drawing

from pneumonia_hf.files import read_json
from pneumonia_hf.reporting import write as writing
from pneumonia_hf.reporting.page import Figure, Page, Section, Summary, Table, to_html, to_markdown
from pneumonia_hf.reporting.write import write_page

PLAIN = Summary("All is well.", [("AUROC", "0.81 (0.72 to 0.90)")], ["It is small."], ["So so."])


def make_page(*sections: Section, title: str = "A title", summary: Summary = PLAIN) -> Page:
    return Page(title, sections, summary)


def draw() -> Drawing:
    drawing = Drawing(figsize=(1, 1))
    drawing.subplots().plot([0, 1])
    return drawing


def test_a_page_opens_with_its_summary_and_links_to_its_sections():
    page = make_page(
        Section("First", ("Some **text**.", Table(["a", "b"], [[1, "x|y"]])), {"one": 1}),
        Section("Hidden", (), {"two": None}),
        Section("Last", ("More.",), {"three": [3]}),
    )
    text = to_markdown(page, ())
    assert (
        text.index("**All is well.**") < text.index("- **It is small.**") < text.index("- So so.")
    )
    assert text.index("- So so.") < text.index("## First") < text.index("## Last")
    assert r"| 1 | x\|y |" in text and "Hidden" not in text
    html = to_html(page, {})
    body = html.partition("<main>")[2]
    assert body.index("All is well.") < body.index("0.81 (0.72 to 0.90)") < body.index("<h2")
    assert "<td>x|y</td>" in body and "<strong>text</strong>" in body and "Hidden" not in html
    for title in ("First", "Last"):
        assert f'<a href="#{title.lower()}">{title}</a>' in html
        assert f'<h2 id="{title.lower()}">{title}</h2>' in html
    assert page.numbers == {"one": 1, "two": None, "three": [3]}


def test_names_of_data_cannot_put_code_into_the_page():
    bad = "<script>alert(1)</script><img src=x onerror=alert(2)><b>"
    link = "[here](javascript:alert(3)) ![x](https://a.b/c.png) <https://a.b>"
    section = Section(
        bad, (bad, f"| file |\n|---|\n| {bad} |", link, Table([bad, link], [[link, bad]]))
    )
    html = to_html(
        make_page(section, title=bad, summary=Summary(bad, [(bad, link)], [bad], [link])), {}
    )
    assert html.count("<script") == 1  # the page's own
    for tag in ("<img", "<b>", 'href="http', 'href="java'):
        assert tag not in html, tag


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

    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(writing, "to_html", fail)
        write_page(new, folder)
    assert {one.name: one.read_bytes() for one in folder.iterdir()} == before
    assert [one.name for one in tmp_path.iterdir()] == ["report"]
    write_page(new, folder, older=("gone.png", "gone.svg", "never.png"))
    assert {one.name for one in folder.iterdir()} == before.keys() - {"gone.png", "gone.svg"}
    assert read_json(folder / "report.json", None) == {"a": 2}
    assert json.loads((folder / "report.json").read_text()) == {"a": 2}
