"""Hostile files and the example of a client, against the running app: see attack_app.py."""

import subprocess
import sys

import pytest
from attack_app import attack, list_attacks
from helpers import ROOT, draw_xray


@pytest.mark.slow
def test_hostile_files_get_clean_errors_and_leave_the_app_healthy(app_url, tiny_model):
    count = 150
    log = tiny_model.parent / "app.log"
    before = log.stat().st_size
    assert count > len(list_attacks(b""))
    assert attack(app_url, count, 13, report=lambda text: None) == []
    written = log.read_bytes()[before:].decode(errors="replace")
    assert "Traceback" not in written and "passwd" not in written


def test_client_example_prints_the_decisions(app_url, tmp_path):
    files = []
    for number in range(2):
        files.append(tmp_path / f"x{number}.png")
        draw_xray(number, ill=bool(number), size=(120, 100)).save(files[-1])
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "client_example.py"), app_url, *map(str, files)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert "positive at or above" in lines[0] and lines[2].startswith("cam (not tested): ")
    assert [line.split()[0] for line in lines[-2:]] == ["x0.png", "x1.png"]
