"""The tab of a batch: analyse many X-rays, list them, and open one in the viewer."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gradio as gr

from pneumonia_hf.compat.gradio import make_upload
from pneumonia_hf.demo.batch_table import describe_row, to_csv
from pneumonia_hf.demo.engine import BatchRow, Engine
from pneumonia_hf.demo.page_files import read_page
from pneumonia_hf.errors import UserError
from pneumonia_hf.imaging.xray import Xray

BATCH = (
    "Up to {batch} X-rays, or zip files of them. Sorted by what needs attention: pneumonias, "
    "unsure ones, files to check, and then the others. A click on one opens it."
)
SAVE = '(detail) => { document.dispatchEvent(new CustomEvent("save-file", {detail})); }'
# Two buttons for each file would lie between them and this one.
FOCUS = '() => { document.querySelector("#batch-run").focus(); }'
KEPT_MB = 500  # of the files of all visitors' batches together, in memory
GONE = "This X-ray is no longer in memory; upload it again."


@dataclass(eq=False)
class ShownBatch:
    """The results of one visitor's batch, and its files, which can be opened again."""

    name: str  # of the file to save
    total: int  # images
    skipped: tuple[tuple[str, str], ...]  # as of Batch
    rows: list[BatchRow] = field(default_factory=list)  # without images
    described: list[dict[str, Any]] = field(default_factory=list)  # the rows, for the page
    contents: list[bytes] = field(default_factory=list)  # none once there is no room for them
    stopped: bool = False

    def stop(self) -> None:
        """End the analysis after the images that are being scored."""
        self.stopped = True

    def describe(self, done: bool) -> dict[str, Any]:
        """Return what batch.js shows."""
        facts = {"total": self.total, "skipped": self.skipped, "done": done}
        return {"rows": self.described} | facts

    def open(self, number: int, engine: Engine) -> Xray:
        """Return the X-ray of a row.

        Raises:
            UserError: it is no longer in memory.
        """
        content = self.contents[number] if number in range(len(self.contents)) else b""
        if not content:
            raise UserError(GONE)
        return engine.read_content(self.rows[number].file, content)


class BatchStore:
    """Bounds what the files of all batches take in memory: the oldest batch loses its own first."""

    def __init__(self, most: int = KEPT_MB * 10**6) -> None:
        """Take the most bytes."""
        self.most = most
        self.known: list[weakref.ref[ShownBatch]] = []
        self.lock = threading.Lock()

    def add(self, shown: ShownBatch, rows: list[BatchRow], engine: Engine) -> None:
        """Add results to a batch, with their files."""
        for row in rows:
            shown.described.append(describe_row(row, engine))
            shown.rows.append(replace(row, xray=None, source=None))
            shown.contents.append(_read(row.source) if row.prediction else b"")
        with self.lock:
            batches = [one for known in self.known if (one := known()) and one is not shown]
            batches.append(shown)
            self.known = list(map(weakref.ref, batches))
            sizes = [sum(map(len, one.contents)) for one in batches]
            left = sum(sizes)
            for one, size in zip(batches, sizes, strict=True):
                if left <= self.most:
                    break
                one.contents = [b""] * len(one.contents)
                left -= size


def _read(source: Path | bytes | None) -> bytes:
    try:
        return source.read_bytes() if isinstance(source, Path) else source or b""
    except OSError:  # deleted since
        return b""


def analyse_batch(engine: Engine, store: BatchStore, paths: list[str] | None) -> Iterator[tuple]:
    """Yield what the list shows, the ShownBatch, and the button that stops it."""
    shown = None
    try:
        if not paths:
            raise UserError("Upload X-rays or a zip file of them first.")
        name = Path(paths[0]).stem if len(paths) == 1 else "xrays"
        batch = engine.open_batch(paths)
        shown = ShownBatch(name, len(batch.files), batch.skipped)
        yield shown.describe(done=False), shown, gr.Button(visible=True)
        for rows in engine.score(batch):
            store.add(shown, rows, engine)
            if shown.stopped:
                break
            yield shown.describe(done=False), shown, gr.skip()
        yield shown.describe(done=True), shown, gr.Button(visible=False)
    except UserError as error:
        found = shown.describe(done=True) if shown else {}
        yield found | {"fault": str(error)}, shown, gr.Button(visible=False)


def add_batch(engine: Engine, state: gr.State) -> None:
    """Add the parts of the tab, which set `state` to the ShownBatch that the viewer opens."""
    gr.Markdown(BATCH.format(batch=engine.limits.batch))
    files = make_upload(
        file_count="multiple", height=170, label="X-rays or zip files", elem_id="batch-files"
    )
    with gr.Row():
        run = gr.Button("Analyse", variant="primary", elem_id="batch-run")
        stop = gr.Button("Stop", visible=False)
        save = gr.Button("Save as CSV")
    table = gr.HTML(
        html_template='<div class="list"></div>',
        js_on_load=read_page("dom.js", "batch.js"),
        elem_id="batch",
        apply_default_css=False,
    )
    saved, store = gr.JSON(visible=False), BatchStore()

    def analyse(paths: list[str] | None) -> Iterator[tuple]:
        yield from analyse_batch(engine, store, paths)

    def to_file(shown: ShownBatch | None) -> dict[str, str]:
        if not shown or not shown.rows:
            raise UserError("Analyse a batch first.")
        return {"name": f"{shown.name}.csv", "kind": "text/csv", "text": to_csv(shown.rows)}

    private = {"api_visibility": "private"}
    files.upload(None, None, None, js=FOCUS, **private)
    run.click(
        analyse, files, [table, state, stop], concurrency_id="batch", concurrency_limit=1,
        show_progress="hidden", **private,
    )  # fmt: skip
    # Not gradio's `cancels`: after it the page never ran the event again.
    stop.click(lambda shown: shown.stop() if shown else None, state, None, **private)
    save.click(to_file, state, saved, **private).success(None, saved, None, js=SAVE, **private)
