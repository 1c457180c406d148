import json
import os

import pytest

from pneumonia_hf.errors import UserError
from pneumonia_hf.training.run_state import create_run_state, lock_run


@pytest.fixture
def folder(tmp_path):
    """The folder of a run of one process with one checkpoint."""
    checkpoint = tmp_path / "checkpoints" / "phase-1" / "checkpoint-5"
    checkpoint.mkdir(parents=True)
    create_run_state(tmp_path, {"processes": 1, "num_train_epochs": 2, "train images": "ab"}, False)
    return tmp_path


def test_refused_resume_says_what_was_and_what_is(folder):
    settings = {"processes": 2, "num_train_epochs": 2, "train images": "cd"}
    with pytest.raises(UserError, match=r"other processes \(1, now 2\), train images; resume it"):
        create_run_state(folder, settings, resume=True)


def test_more_epochs_for_a_complete_run_are_refused_with_the_command_that_trains_further(folder):
    settings = {"processes": 1, "num_train_epochs": 5, "train images": "ab"}
    changed = r"num_train_epochs \(2, now 5\); resume it with the original command, "
    with pytest.raises(UserError, match=changed + "or give --overwrite"):
        create_run_state(folder, settings, resume=True)
    record = json.loads((folder / "checkpoints" / "recipe.json").read_text())
    for name in ("config.json", "model.safetensors"):
        (folder / name).touch()
    (folder / "run.json").write_text(json.dumps({"run_id": record["run_id"]}))
    with pytest.raises(UserError, match=changed + f"train its model .* --weights {folder} and"):
        create_run_state(folder, settings, resume=True)


def test_disk_without_locks_is_reported_and_other_errors_are_raised(tmp_path, monkeypatch, caplog):
    import errno

    import filelock

    def fail_with(number: int) -> None:
        def acquire(self, *args, **kwargs):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(filelock.FileLock, "acquire", acquire)

    fail_with(errno.ENOLCK)
    with lock_run(tmp_path / "run"):
        assert "has no locks" in caplog.text
    fail_with(errno.ENOSPC)
    with pytest.raises(OSError, match="No space"), lock_run(tmp_path / "run"):
        pass
