"""What `evaluate` writes, and mistakes in its flags."""

import json
import shutil

from helpers import assert_one_sentence, call_script, draw_folder, quick_flags

from pneumonia_hf import Predictor


def test_script_writes_the_report_and_the_card(tiny_model, xray_folder, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model, ignore=shutil.ignore_patterns("checkpoints"))
    flags = quick_flags(model, xray_folder, tmp_path / "report")
    done = call_script("evaluate_model.py", *flags, "--split", "test", "--add_to_card")
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "report" / "report.json").read_text())
    card = (model / "README.md").read_text()
    assert f"{numbers['metrics']['auroc']['value']:.3f}" in card
    assert "model-index" in card
    assert Predictor.from_pretrained(model).operating_point.threshold == numbers["threshold"]


def test_unreadable_files_are_listed_in_the_report_and_in_no_metric(tiny_model, tmp_path):
    from helpers import assert_one_sentence, call_script

    folder = draw_folder(tmp_path / "data", patients=6)
    (folder / "NORMAL" / "IM-0002-0000.png").write_bytes(b"\x89PNG broken")
    flags = quick_flags(tiny_model, folder, tmp_path / "report")
    strict = call_script("evaluate_model.py", *flags, "--strict")
    assert_one_sentence(strict, "IM-0002-0000.png", "repair or remove")
    done = call_script("evaluate_model.py", *flags)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["n"] == 11 and report["NORMAL"] == 5
    assert len(report["unreadable"]) == 1 and "IM-0002-0000.png" in report["unreadable"][0]
    text = (tmp_path / "report" / "report.md").read_text()
    assert "1 file could not be read" in text and "not read: NORMAL/IM-0002" in text


def test_missing_columns_and_folders_are_one_sentence(tiny_model, adults, tmp_path):
    flags = quick_flags(tiny_model, adults, tmp_path / "report")
    done = call_script("evaluate_model.py", *flags, "--subgroups", "side")
    assert_one_sentence(done, "no column 'side'", "view")
    done = call_script("evaluate_model.py", *flags, "--other_classes", "OTHERS")
    assert_one_sentence(done, "OTHERS is no folder", "--other_classes")
    done = call_script("evaluate_model.py", *flags, "--other_classes", "NORMAL")
    assert_one_sentence(done, "one of the two classes")
    assert not (tmp_path / "report").exists()


def test_data_that_the_model_has_seen_is_not_external(tiny_model, xray_folder, adults, tmp_path):
    flags = ["--model", tiny_model, "--output_dir", tmp_path / "report", "--quick", "--external"]
    done = call_script("evaluate_model.py", *flags, "--data_dir", xray_folder, "--split", "test")
    assert_one_sentence(done, "are of the model's own data", "leave --external out")
    done = call_script("evaluate_model.py", *flags, "--data_dir", adults)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "report" / "report.json").read_text())["external"]
