"""What several processes share."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import LAUNCHER, ROOT, call_script, draw_folder

from pneumonia_hf import distributed
from pneumonia_hf.errors import Stopped


def test_each_item_is_computed_by_one_process_and_the_results_are_in_order(monkeypatch):
    computed, gathered = [], []

    def compute(numbers):
        computed.extend(numbers)
        return [10 * number for number in numbers]

    def gather(own):
        gathered.extend(own)
        return gathered

    monkeypatch.setattr(distributed, "gather_object", gather)
    for process in range(3):
        state = SimpleNamespace(num_processes=3, process_index=process)
        monkeypatch.setattr(distributed, "PartialState", lambda state=state: state)
        found = distributed.share_out(compute, 20, 4)
    assert found == list(range(0, 200, 10))
    assert computed == [*range(4), *range(12, 16), *range(4, 8), *range(16, 20), *range(8, 12)]


def test_sigterm_to_one_of_several_scoring_processes_is_a_sentence(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(
        distributed, "PartialState", lambda **_: SimpleNamespace(is_main_process=True)
    )
    before = signal.getsignal(signal.SIGTERM)
    try:
        distributed.start_scoring()
        assert "Waiting for all of 2 processes." in capsys.readouterr().err
        with pytest.raises(Stopped, match="completed work is kept"):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def find_second(launcher: int) -> int | None:
    """Return the second of the processes that a launcher has started, once it runs."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if b"\0RANK=1\0" in Path(f"/proc/{child}/environ").read_bytes():
            return int(child)
    return None


@pytest.mark.slow
def test_two_processes_make_the_report_of_one_also_after_one_was_killed(tiny_model, tmp_path):
    folder = draw_folder(tmp_path / "data", patients=20)  # 40 images: two shares
    (folder / "NORMAL" / "IM-0003-0000.png").write_bytes(b"not an image")
    flags = ["--model", tiny_model, "--data_dir", folder, "--quick", "--resamples", 20]
    flags += ["--robustness", 40, "--external", f"far={draw_folder(tmp_path / 'far', 4, seed=900)}"]
    flags += ["--output_dir", tmp_path / "two"]
    command = [*LAUNCHER, ROOT / "train_scripts/evaluate_model.py", *flags]
    settings = {"env": os.environ | {"OMP_NUM_THREADS": "1"}, "text": True}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    running = subprocess.Popen([*map(str, command)], **settings, **output)
    while not (tmp_path / "two" / ".steps").exists():  # the first pass is complete
        assert running.poll() is None, running.communicate()
        time.sleep(0.02)
    os.kill(find_second(running.pid), signal.SIGKILL)
    printed, errors = running.communicate(timeout=300)
    assert running.returncode != 0 and not printed
    assert errors.count("completed work is kept") == 1, errors
    assert [one.name for one in (tmp_path / "two").iterdir()] == [".steps"]
    done = subprocess.run([*map(str, command)], **settings, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("The report is in") == 1
    assert not (tmp_path / "two" / ".steps").exists()
    one = call_script("evaluate_model.py", *flags[:-1], tmp_path / "one")
    assert one.returncode == 0, one.stderr
    for name in ("predictions.csv", "report.json"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert json.loads((tmp_path / "two" / "report.json").read_text())["n"] == 39
