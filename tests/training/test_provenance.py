import json

import pytest


@pytest.mark.parametrize(
    ("weights", "base_model", "licence"),
    [
        (None, "facebook/dinov2-small", "apache-2.0"),
        ("facebook/dinov2-small@main", "facebook/dinov2-small", "apache-2.0"),
        ("someone/other", "someone/other", "other"),
        ("none", None, "apache-2.0"),
    ],
)
def test_manifest_names_the_origin_and_licence_of_the_weights(weights, base_model, licence):
    from pneumonia_hf.models.build import ModelConfig
    from pneumonia_hf.training.provenance import describe_origin

    origin = describe_origin(ModelConfig("dinov2-small", weights))
    assert (origin["base_model"], origin["license"]) == (base_model, licence)


def test_a_hub_id_has_the_licence_of_the_same_model_in_a_folder(tmp_path, monkeypatch):
    from pneumonia_hf.models.build import ModelConfig
    from pneumonia_hf.training.provenance import describe_origin

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    download = tmp_path / "models--me--big"
    for name, run in {
        "free": {"model": {"license": "apache-2.0"}},
        "bound": {"model": {"license": "cc-by-nc-4.0"}},
        "foreign": {"model": "a name"},
        "listed": [],
    }.items():
        folder = download / "snapshots" / name
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps(run))
    (download / "refs").mkdir()
    for revision, name in {"main": "free", "v1": "bound", "v2": "foreign", "v3": "listed"}.items():
        (download / "refs" / revision).write_text(name)

    def licence(weights: str | None = "none", teacher: str | None = None) -> str:
        return describe_origin(ModelConfig("dinov2-small", weights), teacher)["license"]

    for name in (str(download / "snapshots" / "free"), "me/big", "me/big@free"):
        assert licence(teacher=name) == licence(name) == "apache-2.0", name
    for name in (str(download / "snapshots" / "bound"), "me/big@v1"):
        assert licence(teacher=name) == "other" and licence(name) == "cc-by-nc-4.0", name
    for name in ("me/big@v2", "me/big@v3", "me/unknown"):
        assert licence(teacher=name) == licence(name) == "other", name
