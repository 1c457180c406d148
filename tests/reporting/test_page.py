"""A report as Markdown and as HTML."""

from pneumonia_hf.reporting.page import Page, Section, Summary, Table, to_html, to_markdown

PLAIN = Summary("All is well.", [("AUROC", "0.81 (0.72 to 0.90)")], ["It is small."], ["So so."])


def make_page(*sections: Section, title: str = "A title", summary: Summary = PLAIN) -> Page:
    return Page(title, sections, summary)


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
