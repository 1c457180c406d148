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
