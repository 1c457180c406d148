"""Results that an interrupted evaluation leaves."""

import numpy as np

from pneumonia_hf.evaluation.steps import Steps


def test_steps_are_computed_once_and_again_for_other_inputs(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"x": np.arange(3), "names": np.array(["a", "bc"])}

    for key in ("one", "one", "two"):
        found = Steps(tmp_path / "steps", key).run("a step", compute)
        assert found["x"].tolist() == [0, 1, 2] and found["names"].tolist() == ["a", "bc"]
    assert len(calls) == 2
    steps = Steps(tmp_path / "steps", "two")
    steps.remove()
    assert not (tmp_path / "steps").exists()
    Steps().run("a step", compute)
    assert not (tmp_path / "steps").exists()


def test_the_time_left_follows_from_the_forward_passes_that_are_done(tmp_path, capsys, monkeypatch):
    from tqdm.auto import tqdm

    now = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    monkeypatch.setattr(tqdm, "monitor_interval", 0)

    def compute():
        now[0] += 30
        return {"x": np.arange(3)}

    folder = tmp_path / "steps"
    Steps(folder).run("kept", compute)  # by an evaluation that was interrupted
    steps = Steps(folder)
    steps.expect(1600)
    steps.run("first", compute, passes=100)
    shown = capsys.readouterr().err.split("\r")[-1]
    assert "Report, first: 6%, 00:30 so far, about 07:30 left" in shown
    steps.run("kept", compute, passes=500)  # takes no time
    steps.run("second", compute, passes=100)
    shown = capsys.readouterr().err.split("\r")[-1]
    assert "Report, second: 18%, 01:00 so far, about 04:30 left" in shown
    steps.close()
    steps.advance(1)  # without a line there is nothing to show
    assert "Report" not in capsys.readouterr().err.split("\r")[-1]
