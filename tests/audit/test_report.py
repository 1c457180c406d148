"""The report of an audit."""

import json
import shutil

import pytest
from helpers import assert_one_sentence, call_script

from pneumonia_hf.audit.dataset import VERDICTS
from pneumonia_hf.audit.run import CHECKS


@pytest.mark.figures
def test_script_writes_a_report_for_people_and_programs(clean, tmp_path):
    folder = shutil.copytree(clean, tmp_path / "data")
    shutil.copy(folder / "train/NORMAL/IM-0003-0000.png", folder / "test/NORMAL/IM-0950-0000.png")
    flags = ["--data_dir", folder, "--output_dir", tmp_path / "audit", "--features", "pixels"]
    done = call_script("audit_data.py", *flags)
    assert done.returncode == 0, done.stderr
    assert "fail  exact_duplicates: 2 images in 1 group" in done.stdout
    report = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert set(report) == set(CHECKS)
    for name, one in report.items():
        assert one["verdict"] in VERDICTS and isinstance(one["count"], int), name
        assert isinstance(one["examples"], list)
    text = (tmp_path / "audit" / "audit.md").read_text()
    for line in text.splitlines():
        if line.startswith("!["):
            assert (tmp_path / "audit" / line.split("(")[1].rstrip(")")).exists(), line
    assert (tmp_path / "audit" / "thumbnails" / "exact_duplicates.png").exists()
    assert (tmp_path / "audit" / "thumbnails" / "augmentation.png").exists()
    assert str(folder) not in text + json.dumps(report)

    assert_one_sentence(call_script("audit_data.py", *flags), "audit.json", "--overwrite")
    done = call_script("audit_data.py", *flags, "--overwrite", "--no_thumbnails")
    assert done.returncode == 0
    assert not list((tmp_path / "audit" / "thumbnails").glob("*.png"))
    assert "thumbnails/" not in (tmp_path / "audit" / "audit.md").read_text()
