"""All checks together."""

from pneumonia_hf.audit.dataset import VERDICTS
from pneumonia_hf.audit.run import CHECKS


def test_clean_data_passes_every_check_of_files_and_splits(clean_findings):
    verdicts = {name: one.verdict for name, one in clean_findings.items()}
    assert set(verdicts) == set(CHECKS)
    assert set(verdicts.values()) <= set(VERDICTS)
    # Patients by file name cannot have both labels: that check does not pass, it cannot be made.
    assert verdicts["patient_labels"] == "warn"
    for name in set(CHECKS) - {"label_suspects", "shortcuts", "patient_labels"}:
        assert verdicts[name] == "pass", (name, clean_findings[name])
