"""A Space in one command: its files, its variables, and what a second call changes."""

import sys

import pytest
import yaml
from helpers import ROOT
from hub_server import Repository

from pneumonia_hf import commands
from pneumonia_hf.errors import HubError, UserError
from pneumonia_hf.publish.space import make_space

pytestmark = [
    pytest.mark.usefixtures("own_client"),
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # of the Hub's client
]
CARD = b"---\nlicense: apache-2.0\ndatasets:\n- me/xrays\n- me/private\n---\n# x"


@pytest.fixture
def model(hub) -> Repository:
    """A model of the Hub with the tag v1."""
    repository = hub.repositories["me/x"] = Repository(private=False)
    repository.commit("first", {"config.json": b"{}", "README.md": CARD})
    repository.tags["v1"] = repository.commits[-1][0]
    for name, private in (("me/xrays", False), ("me/private", True)):
        hub.repositories[name] = Repository(private)
        hub.repositories[name].commit("first", {})
    return repository


def space_of(hub) -> Repository:
    return hub.repositories["spaces/me/demo"]


def test_space_serves_the_revision_with_the_files_that_it_needs(hub, model):
    pushed, needs_token = make_space("me/demo", "me/x@v1", hardware="cpu-upgrade")
    assert pushed.is_new and not needs_token
    space = space_of(hub)
    assert space.private and len(space.commits) == 2
    assert space.variables == {"MODEL_ID": "me/x", "MODEL_REVISION": model.tags["v1"]}
    files = space.commits[-1][1]
    (wheel,) = (name for name in files if name.endswith(".whl"))
    assert files.keys() == {".gitattributes", "README.md", "app.py", "requirements.txt", wheel}
    front = yaml.safe_load(files["README.md"].decode().split("---")[1])
    own = yaml.safe_load((ROOT / "README.md").read_text().split("---")[1])
    same = ("sdk", "sdk_version", "app_file", "python_version", "license", "title")
    assert [front[name] for name in same] == [own[name] for name in same]
    assert (front["models"], front["datasets"]) == (["me/x"], ["me/xrays"])
    assert front["suggested_hardware"] == "cpu-upgrade" and len(front["short_description"]) <= 60
    assert model.tags["v1"] in files["README.md"].decode()
    assert b"torch==" in files["requirements.txt"] and b"gradio[mcp]==" in files["requirements.txt"]
    compile(files["app.py"], "app.py", "exec")


def test_second_call_changes_only_what_changed(hub, model):
    first, _ = make_space("me/demo", "me/x@v1")
    space = space_of(hub)
    space.variables["MAX_BATCH"] = "20"  # the owner's own
    space.commit("by hand", {"pneumonia_hf-0.1-py3-none-any.whl": b"x", "notes.md": b"x"})
    before = len(hub.requests)
    make_space("me/demo", "me/x@v1")
    assert "POST /api/spaces/me/demo/variables" not in hub.requests[before:]
    assert "pneumonia_hf-0.1-py3-none-any.whl" not in space.commits[-1][1]
    assert "notes.md" in space.commits[-1][1]
    count = len(space.commits)
    again, _ = make_space("me/demo", "me/x@v1")
    assert not again.is_new and len(space.commits) == count
    newer = model.commit("second", {"config.json": b"{} "})
    make_space("me/demo", "me/x")
    assert space.variables == {"MODEL_ID": "me/x", "MODEL_REVISION": newer, "MAX_BATCH": "20"}
    changed = {name for name, one in space.commits[-1][1].items()
               if space.commits[-2][1].get(name) != one}  # fmt: skip
    assert changed == {"README.md"} and first.revision != again.revision


def test_command_prints_the_address_and_what_a_private_model_needs(hub, model, monkeypatch, capsys):
    model.private = True
    words = ["pneumonia-hf", "space", "--repo_id", "me/demo", "--model", "me/x@v1", "--public"]
    monkeypatch.setattr(sys, "argv", words)
    commands.main()
    printed = capsys.readouterr().out
    assert f"The Space is {hub.url}/spaces/me/demo." in printed and "HF_TOKEN" in printed
    assert not space_of(hub).private
    assert "hf_of_me" not in str(space_of(hub).variables)  # no token is sent there by itself


def test_command_names_the_class_of_a_model_of_another_project(hub, model, monkeypatch):
    words = ["pneumonia-hf", "space", "--repo_id", "me/demo", "--model", "me/x@v1"]
    for given, expected in (([], None), (["Lung opacity"], "Lung opacity"), ([], "Lung opacity"),
                            (["PNEUMONIA"], "PNEUMONIA")):  # fmt: skip
        flags = ["--positive_label", *given] if given else []
        monkeypatch.setattr(sys, "argv", words + flags)
        commands.main()
        assert space_of(hub).variables.get("POSITIVE_LABEL") == expected
    monkeypatch.setattr(sys, "argv", [*words, "--positive_label", "a", "b"])
    with pytest.raises(UserError, match="one class for all models"):
        commands.main()


def test_each_mistake_is_one_sentence(hub, model, tmp_path):
    for repo_id, name, words in (
        ("demo", "me/x", "give it as owner/name"),
        ("you/demo", "me/x", "use a token with write access"),
        ("me/demo", str(tmp_path), "is not on the Hub; push it first"),
        ("me/demo", "me/y", "the Hub has no such model"),
        ("me/demo", "me/x@v9", "has no revision 'v9'"),
    ):
        with pytest.raises(UserError, match=words):
            make_space(repo_id, name)
    assert hub.repositories.keys() == {"me/x", "me/xrays", "me/private"}
    hub.broken = True
    with pytest.raises(HubError):
        make_space("me/demo", "me/x")
