"""Datasets of the Hub: splits, labels, configurations and revisions."""

import pytest
from hub_server import LocalHub, Repository
from xray_files import assert_equals_drawn, kinds_of, make_parquet

from pneumonia_hf.data.image_stream import identify_stream, stream_images
from pneumonia_hf.data.load import load_splits
from pneumonia_hf.errors import UserError


@pytest.fixture
def hub(tmp_path, monkeypatch):
    import datasets.config
    import huggingface_hub.constants as constants
    from huggingface_hub import hf_file_system

    with LocalHub() as server:
        for place in (constants, datasets.config):
            for name in ("ENDPOINT", "HF_ENDPOINT"):
                if hasattr(place, name):
                    monkeypatch.setattr(place, name, server.url)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
        hf_file_system.HfFileSystem.clear_instance_cache()
        yield server
        hf_file_system.HfFileSystem.clear_instance_cache()


def test_hub_dataset_has_labels_by_name_and_patients_by_file(hub):
    repository = Repository(private=False)
    files = {
        f"data/{split}-00000-of-00001.parquet": make_parquet(count, seed)
        for split, count, seed in (("train", 13, 0), ("validation", 9, 50), ("test", 7, 90))
    }
    repository.commit("add", files)
    hub.repositories["someone/xrays"] = repository
    splits = load_splits("hub:someone/xrays")
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 12,
        "validation": 8,
        "test": 6,
    }
    for name, count, seed in (("train", 12, 0), ("validation", 8, 50), ("test", 6, 90)):
        assert_equals_drawn(splits[name], count, seed)
    assert splits["train"]["patient"][:3] == ["train/person0", "train/person0", "train/person1"]
    assert splits["train"]["view"][0] == "PA"
    assert kinds_of(splits)["unknown_label"][0] == "train/person6_virus_12.jpeg"
    repository.commit("more", {"data/extra-00000-of-00001.parquet": make_parquet(5)})
    more = load_splits("hub:someone/xrays@main")
    assert {name: len(rows) for name, rows in more.items()} == {
        "train": 12,
        "validation": 8,
        "test": 6,
    }
    assert [(one.file, one.count) for one in more.issues if one.kind == "no_place"] == [
        ("extra", 5)
    ]
    with pytest.raises(UserError, match="no dataset someone/none"):
        load_splits("hub:someone/none")
    with pytest.raises(UserError, match="revision 'v9'"):
        load_splits("hub:someone/xrays@v9")


CARD = """---
configs:
- config_name: small
  data_files: small/*.parquet
- config_name: large
  data_files: large/*.parquet
---
"""


def test_configuration_of_a_hub_dataset_is_named_after_a_colon(hub):
    repository = Repository(private=False)
    files = {f"{name}/0.parquet": make_parquet(n, n) for name, n in (("small", 7), ("large", 9))}
    first = repository.commit("add", files | {"README.md": CARD.encode()})
    repository.commit("less", {"large/0.parquet": make_parquet(5, 5)})
    hub.repositories["someone/several"] = repository
    for where, count, seed in (
        ("someone/several:small", 6, 7),
        ("someone/several:large", 4, 5),
        (f"someone/several:large@{first}", 8, 9),
    ):
        (rows,) = load_splits(f"hub:{where}").values()
        assert_equals_drawn(rows, count, seed)
    with pytest.raises(UserError, match=r"no configuration 'huge'; give .*:small or .*:large"):
        load_splits("hub:someone/several:huge")
    with pytest.raises(UserError, match=r"has several configurations; give .*:small or .*:large"):
        load_splits("hub:someone/several")
    with pytest.raises(UserError, match="no dataset someone/none"):
        load_splits("hub:someone/none:small")
    hub.repositories["someone/one"] = one = Repository(private=False)
    one.commit("add", {"data/train-0.parquet": make_parquet(7)})
    with pytest.raises(UserError, match="has no configuration 'small'; leave it out"):
        load_splits("hub:someone/one:small")


def test_a_dataset_is_streamed_without_a_copy(hub, tmp_path):
    repository = Repository(private=False)
    repository.commit("add", {"data/test-00000-of-00001.parquet": make_parquet(4)})
    hub.repositories["someone/films"] = repository
    found = list(stream_images("hub:someone/films"))
    assert len(found) == len({name for name, _ in found}) == 4
    assert all(name.startswith("test/") and isinstance(image, bytes) for name, image in found)
    assert not list((tmp_path / "datasets").rglob("*.arrow"))
    first = identify_stream("hub:someone/films")
    repository.commit("more", {"data/test-00001-of-00002.parquet": make_parquet(2, 30)})
    assert identify_stream("hub:someone/films") != first
    for use in (identify_stream, lambda source: list(stream_images(source))):
        with pytest.raises(UserError, match="nobody/films"):
            use("hub:nobody/films")
