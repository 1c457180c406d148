"""The page for everybody: contrast and names by WCAG, the keyboard alone, nothing covered."""

import browsers
import pytest
from browsers import SLOW, needs_browser, open_tab, show_map, upload

pytestmark = needs_browser
browser, page, xray = browsers.browser, browsers.page, browsers.xray


# The texts that lie over a button, an icon or an image to which they do not belong.
COVERED = """() => {
  const viewer = document.querySelector("#viewer"), isSeen = (one) => one.checkVisibility();
  const found = [], texts = document.createTreeWalker(viewer, NodeFilter.SHOW_TEXT);
  const parts = [...viewer.querySelectorAll("button, svg, img")].filter(isSeen);
  while (texts.nextNode()) {
    const text = texts.currentNode, range = document.createRange();
    if (!text.textContent.trim() || !isSeen(text.parentElement)) continue;
    range.selectNodeContents(text);
    for (const one of range.getClientRects())
      for (const part of parts.filter((part) => !part.contains(text))) {
        const other = part.getBoundingClientRect();
        const wide = Math.min(one.right, other.right) - Math.max(one.left, other.left);
        const high = Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top);
        if (wide > 1 && high > 1) found.push([text.textContent, part.outerHTML.slice(0, 80)]);
      }
  }
  return found;
}"""


def test_no_text_of_the_empty_viewer_covers_an_icon_or_a_button(page):
    page.locator("#viewer .examples button").first.wait_for(timeout=SLOW)
    for width in (page.viewport_size["width"], 1440, 390, 360):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(300)
        assert page.evaluate(COVERED) == [], width
    page.set_viewport_size({"width": 390, "height": 900})


@pytest.mark.slow
def test_every_tab_is_accessible_by_wcag_aa(page, xray):
    from axe_playwright_python.sync_playwright import Axe

    def check() -> None:
        page.wait_for_timeout(800)  # until nothing is half transparent
        assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
        rules = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
        found = Axe().run(page, options={"runOnly": rules}).response
        assert len(found["passes"]) > 20
        assert [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]] == []

    if page.viewport_size["width"] < 400:
        page.set_viewport_size({"width": 360, "height": 800})
    page.locator("#viewer .examples button").first.wait_for(timeout=SLOW)
    check()
    upload(page, xray)
    show_map(page)
    check()
    page.locator(".modes [data-do=hide]").click()
    page.locator(".panel.hide .scale").wait_for(timeout=SLOW)
    check()
    page.locator(".modes [data-do=opacity]").click()
    page.locator(".panel.opacity .scale").wait_for(timeout=SLOW)
    check()
    open_tab(page, "Batch")
    check()
    inputs = page.locator("#batch-files input[type=file]")
    page.wait_for_timeout(1000)  # a tab's parts get their events after they are drawn
    inputs.first.set_input_files(xray)
    page.locator("#batch-files").get_by_text("xray").first.wait_for(timeout=SLOW)
    page.get_by_role("button", name="Analyse").click()
    page.get_by_text("1 X-ray analysed.").wait_for(timeout=SLOW)
    check()
    open_tab(page, "About")
    check()


@pytest.mark.slow
def test_keyboard_alone_reaches_the_tools_and_the_tabs(page, xray):
    upload(page, xray)
    page.locator("#viewer .stage").focus()
    reached = set()
    for _ in range(16):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.dataset.do || ''"))
    tools = {"choose", "preset", "invert", "pan", "out", "in", "fit", "save", "full"}
    assert tools <= reached
    if page.viewport_size["width"] > 400:
        assert {"why", "hide", "opacity", "pdf"} <= reached
        page.get_by_role("tab", name="X-ray").focus()
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.textContent").strip() == "Batch"
