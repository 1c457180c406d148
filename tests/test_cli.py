"""Recipes and flags, and errors as one sentence."""

import sys

import pytest
from helpers import assert_one_sentence, call_script, draw_folder


def test_a_recipe_gives_what_its_lines_say_and_flags_win(tmp_path):
    from pneumonia_hf.cli import parse_recipe
    from pneumonia_hf.data.load import DataConfig
    from pneumonia_hf.training.arguments import XrayTrainingArguments

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "learning_rate: 1.0e-4\nnum_train_epochs: 7\nphases: [head:1:1e-3]\n"
        "test_images: null\nlr_scheduler_kwargs: {num_cycles: 2}\n"
    )
    flags = ["--config", recipe, "--data_dir", "a", "b", "--output_dir", tmp_path / "x"]
    flags += ["--num_train_epochs", "2"]
    data, training = parse_recipe([DataConfig, XrayTrainingArguments], [*map(str, flags)])
    assert data.data_dir == ["a", "b"] and data.test_images is None
    assert (training.learning_rate, training.num_train_epochs) == (1e-4, 2)
    assert training.lr_scheduler_kwargs == {"num_cycles": 2}
    assert training.phases[0].startswith("head")


def test_full_disk_is_recognised_in_the_errors_of_all_libraries(capsys):
    import errno

    from safetensors import SafetensorError

    from pneumonia_hf.cli import run_script as run

    faults = [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] PytorchStreamWriter failed"),
    ]
    for fault in faults:

        def main(fault=fault):
            raise fault

        with pytest.raises(SystemExit) as ended:
            run(main)
        assert ended.value.code == 2
        assert "The disk is full" in capsys.readouterr().err


def test_missing_package_is_named_with_what_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagehash", None)  # as where only the app is installed
    monkeypatch.setenv("PNEUMONIA_HF_CACHE", str(tmp_path / "cache"))  # no image is known yet
    data = draw_folder(tmp_path / "data", 2)
    done = call_script("audit_data.py", "--data_dir", data, "--output_dir", tmp_path / "audit")
    assert_one_sentence(done, "imagehash", "pip install -e '.[train]'")
    assert not (tmp_path / "audit").exists()


def test_bugs_keep_their_traceback():
    from pneumonia_hf.cli import run_script as run

    def main():
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run(main)
