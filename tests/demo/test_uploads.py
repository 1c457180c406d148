"""What is kept of uploads."""

import asyncio
import os
import time
from pathlib import Path
from types import SimpleNamespace

from pneumonia_hf.demo import uploads
from pneumonia_hf.demo.uploads import MOST_UPLOADING, delete_old, delete_regularly


def set_clock(monkeypatch, now: float) -> None:
    """Set the time by which uploads are old: their own, st_ctime, cannot be set."""
    clock = SimpleNamespace(time=lambda: now, sleep=time.sleep)
    monkeypatch.setattr(uploads, "time", clock)


def test_old_uploads_and_empty_folders_are_deleted(tmp_path, monkeypatch):
    for name in ("old", "links", "mixed"):
        (tmp_path / name).mkdir()
    for name in ("old/a.png", "mixed/b.png"):
        (tmp_path / name).write_bytes(b"x")
    for name, target in (("links/a", "mixed/new.png"), ("links/b", "mixed")):
        (tmp_path / name).symlink_to(tmp_path / target)
    time.sleep(0.1)
    between = time.time()
    time.sleep(0.1)
    (tmp_path / "mixed" / "new.png").write_bytes(b"x")
    set_clock(monkeypatch, between + 60)
    delete_old(tmp_path, 60)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left - {"old", "links"} == {"mixed", "mixed/new.png"}  # they have changed just now
    (tmp_path / "broken-off").write_bytes(b"x")
    set_clock(monkeypatch, time.time() + MOST_UPLOADING + 1)
    delete_regularly(tmp_path, 2)
    deadline = time.time() + 20
    while list(tmp_path.rglob("*")) and time.time() < deadline:
        time.sleep(0.1)
    assert not list(tmp_path.rglob("*"))


def test_files_stay_while_others_of_their_upload_come(tmp_path, monkeypatch):
    """Through gradio, which writes each to a file of its own, and moves all at the end."""
    import gradio as gr
    import httpx

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    demo = gr.Blocks(analytics_enabled=False)
    demo.max_file_size = None  # as `launch` sets it
    app = gr.routes.App.create_app(demo)
    head = '--x\r\nContent-Disposition: form-data; name="files"; filename="{}"\r\n\r\n{}\r\n'

    async def send():
        yield head.format("a.png", "one").encode()
        yield b"--x\r\n"  # which ends the first file
        (first,) = tmp_path.iterdir()
        os.utime(first, (time.time() - 300,) * 2)  # st_mtime, which the move keeps
        set_clock(monkeypatch, time.time() + 300)
        delete_old(tmp_path, 60)
        set_clock(monkeypatch, time.time())
        yield head.format("b.png", "two").encode()[5:] + b"--x--\r\n"

    async def upload() -> list[str]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            kind = {"content-type": "multipart/form-data; boundary=x"}
            answer = await client.post("/gradio_api/upload", content=send(), headers=kind)
        return answer.json()

    paths = list(map(Path, asyncio.run(upload())))
    delete_old(tmp_path, 60)
    assert [path.read_text() for path in paths] == ["one", "two"]
    set_clock(monkeypatch, time.time() + 300)
    delete_old(tmp_path, 60)
    assert not any(path.exists() for path in paths)
