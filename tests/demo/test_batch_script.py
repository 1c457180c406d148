"""The batch's JavaScript in a real browser, without a server and without a model."""

import browsers
import pytest
from browsers import needs_browser

from pneumonia_hf.demo.page_files import read_page

pytestmark = needs_browser
browser = browsers.browser
START = """
([script, value]) => {
  window.opened = [];
  window.props = {value};
  document.addEventListener("xray-open", ({detail}) => {
    document.dispatchEvent(new CustomEvent("xray-start"));
    opened.push(detail.row);
  });
  const element = document.querySelector("#batch");
  const watch = (_, act) => { window.redraw = act; };
  Function("element", "props", "watch", script)(element, props, watch);
}
"""
FILES = [("b10.png", "NORMAL", 0.1), ("<i>torn.png", "", None), ("a.png", "PNEUMONIA", 0.8),
         ("b9.png", "REFER", 0.4), ("c.png", "PNEUMONIA", 0.9)]  # fmt: skip
ROWS = [
    {"file": file, "decision": decision, "probability": share, "words": f"It is {decision}.",
     "percent": f"{share}", "warnings": "<b>odd", "image": None}
    for file, decision, share in FILES
]  # fmt: skip
VALUE = {"rows": ROWS, "total": 5, "skipped": [["<i>.txt", "no image"]], "done": True}


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1000, "height": 800})
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    tabs = "".join(f"<button role=tab onclick='tab = this.textContent'>{one}</button>"
                   for one in ("X-ray", "Batch"))  # fmt: skip
    page.set_content(
        f"<style>{read_page('batch.css')}</style>{tabs}"
        f"<div id=batch-bar>{read_page('batch.html')}</div>"
        "<div id=viewer><div class=stage tabindex=0></div></div>"
        "<div id=batch><div class=list></div></div>"
    )
    page.evaluate(START, [read_page("dom.js", "batch.js"), VALUE])
    yield page
    assert faults == []
    page.close()


def show(page, **changes) -> str:
    """Show another value, and return the text of the list."""
    page.evaluate("value => { props.value = value; redraw(); }", VALUE | changes)
    return page.locator("#batch").inner_text()


def shown(page) -> list[str]:
    return page.locator("tbody tr:visible td:nth-child(2)").all_inner_texts()


def focused(page) -> str:
    return page.evaluate("document.activeElement.textContent")


def test_chips_filter_and_headings_sort_also_after_new_rows(page):
    assert shown(page) == ["c.png", "a.png", "b9.png", "<i>torn.png", "b10.png"]
    page.get_by_role("button", name="2 pneumonia").click()
    assert shown(page) == ["c.png", "a.png"]
    page.get_by_role("button", name="File").click()
    assert shown(page) == ["a.png", "c.png"]
    page.evaluate("redraw()")  # as when the next images have been analysed
    assert shown(page) == ["a.png", "c.png"]
    page.get_by_role("button", name="all 5").click()
    assert shown(page) == ["<i>torn.png", "a.png", "b9.png", "b10.png", "c.png"]
    assert page.locator("th[aria-sort=ascending]").inner_text().startswith("File")
    page.get_by_role("button", name="Probability").click()
    assert shown(page) == ["c.png", "a.png", "b9.png", "b10.png", "<i>torn.png"]
    page.get_by_role("button", name="1 not readable").click()
    assert shown(page) == ["<i>torn.png"]


def test_texts_of_others_are_text_and_what_was_skipped_is_listed_with_the_reason(page):
    assert page.locator("#batch i").count() == page.locator("#batch b").count() == 0
    text = page.locator("#batch").inner_text()
    assert "1 file in zip files skipped" in text and "<i>.txt: no image" in text
    many = show(page, skipped=[[f"{number}.txt", "why"] for number in range(70)])
    assert "70 files in zip files skipped" in many and "and 20 other files" in many


def test_the_list_says_how_far_it_is(page):
    assert "4 X-rays analysed, 1 file not readable." in page.locator("#batch").inner_text()
    assert "Analysing: 1 of 5 files done." in show(page, rows=ROWS[:1], done=False)
    assert page.locator("progress").get_attribute("value") == "1"
    assert "Stopped: 1 of 5 files analysed." in show(page, rows=ROWS[:1])
    assert "1 X-ray analysed." in show(page, rows=ROWS[:1], total=1)
    # What was analysed before the time was over stays, under the reason.
    broken = show(page, rows=ROWS[:1], fault="The batch took longer than 60 s.")
    assert page.get_by_role("alert").inner_text() == "The batch took longer than 60 s."
    assert broken.index("took longer") < broken.index("Stopped: 1 of 5 files analysed.")
    assert shown(page) == ["b10.png"]
    show(page, rows=[], fault="The batch took longer than 60 s.")
    assert page.locator("#batch table").count() == 0
    page.evaluate("props.value = {fault: 'There is no image.'}; redraw()")
    assert page.get_by_role("alert").inner_text() == "There is no image."


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
    # Also from the viewer, which keeps the focus: its keys are for the X-ray.
    stage = page.locator("#viewer .stage")
    stage.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("PageDown")
    assert page.evaluate("opened") == [4, 2, 4, 2]
    page.keyboard.press("PageDown")  # it is the last
    page.keyboard.press("PageUp")
    assert page.evaluate("opened") == [4, 2, 4, 2, 4]
    assert stage.evaluate("one => one === document.activeElement")
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
