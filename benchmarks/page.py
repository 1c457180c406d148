"""How long the page takes to follow a move of the simulated opacity: its answer, and its map.

python benchmarks/page.py [--moves 20] [--model FOLDER]

Starts the app on a free port of this machine and opens it in Chromium (BROWSER_PATH names another
browser; needs requirements-dev.txt). Each move is a key press; the times go from there to the frame
that shows the new probability, and to the one that shows the new attribution map.
"""

import os
import shutil
import statistics

from _shared import ROOT, describe_machine, start_app, time_forward

from pneumonia_hf.cli import make_parser, run_script

WAIT = 120_000  # milliseconds
NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = os.environ.get("BROWSER_PATH") or next(filter(None, map(shutil.which, NAMES)), None)

# The page draws in frames: what a frame finds in the document, the user sees next.
MOVE = """async (moves) => {
  const find = (selector) => document.querySelector("#viewer " + selector);
  const frame = () => new Promise(requestAnimationFrame);
  const times = [];
  for (let move = 0; move < moves; move++) {
    const before = find(".xray").src, start = performance.now();
    const key = move % 2 ? "ArrowLeft" : "ArrowRight";
    document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
    while (find(".xray").src === before) await frame();
    const answered = performance.now() - start;
    while (!find(".map")?.complete) await frame();
    times.push([answered, performance.now() - start]);
  }
  return times;
}"""


def main() -> None:
    """Move the opacity, and print the times beside that of one forward pass."""
    parser = make_parser(__doc__)
    parser.add_argument("--moves", type=int, default=20)
    parser.add_argument("--model", help="Model folder; default: the one included.")
    options = parser.parse_args()
    if BROWSER is None:
        raise SystemExit("Chromium is needed: install it, or set BROWSER_PATH to another browser.")
    from pneumonia_hf import Predictor
    from pneumonia_hf.models.model_folder import DEFAULT_MODEL

    model = str(options.model or DEFAULT_MODEL)
    predictor = Predictor.from_pretrained(model)
    forward = 1000 * time_forward(predictor, ROOT / "docs" / "drawn_xray.png")
    server, url = start_app(model)
    try:
        times = _move(url, options.moves)
    finally:
        server.terminate()
        server.wait(20)
    print(f"{describe_machine()}; {options.moves} moves.\n")
    print("| after a move | median, ms | slowest, ms | bare forward pass, ms |")
    print("|---|---|---|---|")
    for name, found in zip(("probability", "map"), zip(*times, strict=True), strict=True):
        print(f"| {name} | {statistics.median(found):.0f} | {max(found):.0f} | {forward:.1f} |")


def _move(url: str, moves: int) -> list[tuple[float, float]]:
    """Return the milliseconds until the probability and the map, after each move."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto(url)
        page.locator("#viewer .examples [data-do=opacity]").click(timeout=WAIT)
        page.locator("#viewer .map").first.wait_for(timeout=WAIT, state="attached")
        page.evaluate(MOVE, 3)  # to warm up
        return page.evaluate(MOVE, moves)


if __name__ == "__main__":
    run_script(main)
