"""What is kept of uploads."""

import os
import time


def test_old_uploads_and_empty_folders_are_deleted(tmp_path):
    from pneumonia_hf.demo.uploads import delete_old, delete_regularly

    for name in ("old/a.png", "mixed/b.png", "mixed/new.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for name, target in (("link", "mixed/new.png"), ("shortcut", "mixed")):
        (tmp_path / name).symlink_to(tmp_path / target)
        os.utime(tmp_path / name, (0, 0), follow_symlinks=False)
    for name in ("old/a.png", "mixed/b.png", "old", "mixed"):
        os.utime(tmp_path / name, (0, 0))
    delete_old(tmp_path, 60)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left in ({"mixed", "mixed/new.png"}, {"mixed", "mixed/new.png", "old"})
    os.utime(tmp_path / "mixed" / "new.png", (0, 0))
    delete_regularly(tmp_path, 2)
    deadline = time.time() + 20
    while list(tmp_path.rglob("*")) and time.time() < deadline:
        time.sleep(0.1)
    assert not list(tmp_path.rglob("*"))
