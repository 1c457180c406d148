"""A report on models and data, as a user asks for it."""

import json

import pytest
from helpers import assert_one_sentence, call_script, draw_folder


def test_a_model_of_another_project_is_scored_by_the_name_of_its_class(tiny_model, tmp_path):
    import shutil

    foreign = tmp_path / "foreign"
    shutil.copytree(tiny_model, foreign, ignore=shutil.ignore_patterns("checkpoints", "gate*"))
    for name in ("run.json", "README.md"):
        (foreign / name).unlink()
    config = json.loads((foreign / "config.json").read_text())
    del config["pneumonia_hf"]
    config["id2label"] = {"0": "healthy", "1": "lung opacity"}
    config["label2id"] = {"healthy": 0, "lung opacity": 1}
    (foreign / "config.json").write_text(json.dumps(config))
    folder = draw_folder(tmp_path / "data", patients=6)
    flags = ["--model", foreign, "--data_dir", folder, "--quick", "--output_dir", tmp_path / "r"]
    refused = call_script("evaluate_model.py", *flags)
    assert_one_sentence(refused, "healthy, lung opacity", "positive_label")
    done = call_script("evaluate_model.py", *flags, "--positive_label", "Lung Opacity")
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "r" / "report.json").read_text())
    assert numbers["threshold"] == 0.5
    assert any("stores no threshold" in note for note in numbers["notes"])
    own = call_script("evaluate_model.py", "--model", tiny_model, *flags[2:-1], tmp_path / "own")
    assert own.returncode == 0, own.stderr
    area = json.loads((tmp_path / "own" / "report.json").read_text())["metrics"]["auroc"]
    assert numbers["metrics"]["auroc"] == area


def test_sites_and_a_second_model_stand_beside_the_first(tiny_model, xray_folder, tmp_path):
    away = draw_folder(tmp_path / "away", patients=8, seed=4000)
    flags = ["--model", tiny_model, "--data_dir", xray_folder, "--split", "test", "--quick"]
    done = call_script(
        "evaluate_model.py", *flags, "--external", f"far={away}", f"own={xray_folder}",
        "--compare", tiny_model, "--output_dir", tmp_path / "report",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "report" / "report.json").read_text())
    run = json.loads((tiny_model / "run.json").read_text())["data"]["parts"]
    far, own = numbers["sites"]
    assert (far["seen"], own["seen"]) == (False, True)
    assert own["in_test"] == run["test"]["images"]
    assert numbers["comparison"]["seen"]["test"] == run["test"]["images"]
    assert (far["name"], far["normals"] + far["pneumonias"], far["left_out"]) == ("far", 16, 0)
    # Of its own data only the test split is scored.
    assert own["left_out"] == run["train"]["images"] + run["validation"]["images"]
    assert own["drop"]["value"] == pytest.approx(0)
    assert numbers["external"] is False
    assert numbers["comparison"]["disagreements"] == []
    assert {one["verdict"] for one in numbers["findings"]} <= {"pass", "warn", "fail"}
    text = (tmp_path / "report" / "report.md").read_text()
    assert (
        "| far | not known | 8 | 8 |" in text
        and "| yes |" in text
        and "## Comparison" in text
        and "| shortcuts |" in text
    )
    train = call_script(
        "evaluate_model.py", *flags, "--external", away, "--compare", tmp_path / "no",
        "--output_dir", tmp_path / "other",
    )  # fmt: skip
    assert_one_sentence(train, "no", "check --compare")
    assert not list(tmp_path.glob(".*"))  # no leftovers of a mistake


@pytest.mark.slow
def test_an_interrupted_evaluation_goes_on_and_gives_the_same_report(
    tiny_model, tmp_path, monkeypatch
):
    from pneumonia_hf.evaluation.sections import robustness

    folder = draw_folder(tmp_path / "data", patients=6)
    flags = ["--model", tiny_model, "--data_dir", folder, "--resamples", 20, "--robustness", 12]
    flags += ["--attribution", 0]
    whole = call_script("evaluate_model.py", *flags, "--output_dir", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    perturb, made = robustness.perturb, []

    def interrupt(pixels, labels, name, level, seed):
        if name == "blur" and not made.count("stopped"):
            made.append("stopped")
            raise KeyboardInterrupt
        made.append(f"{name} {level}")
        return perturb(pixels, labels, name, level, seed)

    monkeypatch.setattr(robustness, "perturb", interrupt)
    flags += ["--output_dir", tmp_path / "report"]
    stopped = call_script("evaluate_model.py", *flags)
    assert stopped.returncode == 130
    assert [one.name for one in (tmp_path / "report").iterdir()] == [".steps"]
    done = call_script("evaluate_model.py", *flags)
    assert done.returncode == 0, done.stderr
    made.remove("stopped")
    assert len(made) == len(set(made)) == 41  # each kind of copies, and the control, was made once
    assert not (tmp_path / "report" / ".steps").exists()
    for name in ("report.json", "predictions.csv", "report.html"):
        assert (tmp_path / "report" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
