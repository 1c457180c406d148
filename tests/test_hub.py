"""Names of models, without a network; see also tests/integration/test_hub.py."""

import pytest

from pneumonia_hf.errors import UserError
from pneumonia_hf.hub import fetch_folder, find_weights, public_name


def test_local_folder_is_returned_unchanged(tmp_path):
    assert fetch_folder(tmp_path) == tmp_path


def test_public_name_hides_a_local_path_and_keeps_the_owner_of_a_hub_id(tmp_path):
    (tmp_path / "big").mkdir()
    assert public_name(str(tmp_path / "big")) == "big"
    assert public_name(str(tmp_path / "gone")) == "gone"
    assert public_name("me/big@v1") == "me/big@v1"


def test_what_is_neither_a_folder_nor_an_id_is_not_asked_for(tmp_path):
    (tmp_path / "model.bin").write_text("x")
    with pytest.raises(UserError, match=r"is a file; --weights takes a folder or a Hub id"):
        fetch_folder(tmp_path / "model.bin", flag="--weights")
    for name in ("./runs/x", str(tmp_path / "gone"), "me/x/y"):
        with pytest.raises(UserError, match=r"The teacher folder .* does not exist; check --model"):
            fetch_folder(name, what="teacher")


def test_safe_weights_are_found_before_pickled_ones_and_others_are_none(tmp_path):
    for name in ("gate.safetensors", "training_args.bin"):
        (tmp_path / name).touch()
    assert find_weights(tmp_path) == []
    pickled = [tmp_path / f"pytorch_model-0000{part}-of-00002.bin" for part in (2, 1)]
    for file in pickled:
        file.touch()
    assert find_weights(tmp_path) == sorted(pickled)
    (tmp_path / "model.safetensors").touch()
    assert find_weights(tmp_path) == [tmp_path / "model.safetensors"]
