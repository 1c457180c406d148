"""The number of a trial in Optuna's storage, which has no public name."""

from __future__ import annotations

from optuna.trial import Trial


def storage_id(trial: Trial) -> int:
    """Return what the functions of a storage take for a trial; not its number in the study."""
    return trial._trial_id
