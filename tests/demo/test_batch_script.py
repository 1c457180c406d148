"""The batch's JavaScript in a real browser, without a server and without a model."""

import browsers
import pytest
from browsers import needs_browser

from pneumonia_hf.demo.batch_page import PAGE
from pneumonia_hf.demo.batch_table import Line, to_table

pytestmark = needs_browser
browser = browsers.browser
START = """
(script) => {
  window.opened = [];
  document.addEventListener("xray-open", ({detail}) => {
    document.dispatchEvent(new CustomEvent("xray-start"));
    opened.push(detail.row);
  });
  const element = document.querySelector("#batch");
  const watch = (_, act) => { window.redraw = act; };
  Function("element", "trigger", "watch", script)(element, () => {}, watch);
}
"""
ROWS = [("b10.png", "NORMAL", 0.1), ("torn.png", "", -1), ("a.png", "PNEUMONIA", 0.8),
        ("b9.png", "REFER", 0.4), ("c.png", "PNEUMONIA", 0.9)]  # fmt: skip


def make_line(number: int, file: str, decision: str, share: float) -> Line:
    name = f'<button class="open">{file}</button>' if decision else file
    cells = ("", file, share, number, bool(decision))
    content = "".join(
        f'<td data-value="{one}">{name if one == file else one}</td>' for one in cells
    )
    place = f'data-index="{number}" data-decision="{decision}"'
    return Line(file, decision, share, f"<tr {place}>{content}</tr>")


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1000, "height": 800})
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    table = to_table([make_line(number, *row) for number, row in enumerate(ROWS)], len(ROWS))
    read = {name: (PAGE / name).read_text(encoding="utf-8")
            for name in ("batch.css", "batch.html", "batch.js")}  # fmt: skip
    tabs = "".join(f"<button role=tab onclick='tab = this.textContent'>{one}</button>"
                   for one in ("X-ray", "Batch"))  # fmt: skip
    page.set_content(
        f"<style>{read['batch.css']}</style>{tabs}<div id=batch-bar>{read['batch.html']}</div>"
        f"<div id=batch>{table}</div>"
    )
    page.evaluate(START, read["batch.js"])
    yield page
    assert faults == []
    page.close()


def shown(page) -> list[str]:
    return page.locator("tbody tr:visible td:nth-child(2)").all_inner_texts()


def focused(page) -> str:
    return page.evaluate("document.activeElement.textContent")


def test_chips_filter_and_headings_sort_also_after_new_rows(page):
    assert shown(page) == ["c.png", "a.png", "b9.png", "torn.png", "b10.png"]
    page.get_by_role("button", name="2 pneumonia").click()
    assert shown(page) == ["c.png", "a.png"]
    page.get_by_role("button", name="File").click()
    assert shown(page) == ["a.png", "c.png"]
    page.evaluate("redraw()")  # as when the next images have been analysed
    assert shown(page) == ["a.png", "c.png"]
    page.get_by_role("button", name="all 5").click()
    assert shown(page) == ["a.png", "b9.png", "b10.png", "c.png", "torn.png"]
    assert page.locator("th[aria-sort=ascending]").inner_text().startswith("File")
    page.get_by_role("button", name="Probability").click()
    assert shown(page) == ["c.png", "a.png", "b9.png", "b10.png", "torn.png"]
    page.get_by_role("button", name="1 not readable").click()
    assert shown(page) == ["torn.png"]


def test_the_keyboard_opens_an_image_and_goes_through_those_that_are_listed(page):
    page.get_by_role("button", name="2 pneumonia").click()
    page.get_by_role("button", name="c.png").focus()
    page.keyboard.press("ArrowDown")
    assert focused(page) == "a.png"
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    bar = page.locator("#batch-bar .bar")
    assert "c.png: 1 of 2" in bar.inner_text()
    page.wait_for_function("document.activeElement.textContent === 'Next'")
    assert bar.get_by_role("button", name="Previous").is_disabled()
    page.keyboard.press("Enter")
    assert "a.png: 2 of 2" in bar.inner_text()
    assert bar.get_by_role("button", name="Next").is_disabled()
    page.wait_for_function("document.activeElement.textContent === 'Previous'")
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("opened.length === 3")
    assert page.evaluate("opened") == [4, 2, 4] and page.evaluate("tab") == "X-ray"
    page.keyboard.press("Escape")
    page.wait_for_function("document.activeElement.textContent === 'c.png'")
    assert page.evaluate("tab") == "Batch"


def test_a_row_is_opened_by_a_click_and_another_x_ray_ends_it(page):
    page.locator("tr[data-index='3'] td").last.click()
    assert page.evaluate("opened") == [3]
    page.locator("tr[data-index='1'] td").last.click()  # it could not be read
    assert page.evaluate("opened") == [3]
    assert page.locator("#batch-bar .bar").is_visible()
    page.evaluate("document.dispatchEvent(new CustomEvent('xray-start'))")
    assert not page.locator("#batch-bar .bar").is_visible()
