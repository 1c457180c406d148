"""Whether a running app answers as its model does."""

import json
import shutil
import sys
from dataclasses import replace

import pytest
from doc_pages import PAGES, list_blocks, list_commands
from helpers import ROOT
from hub_server import Repository

from pneumonia_hf import Predictor, commands
from pneumonia_hf.demo import check
from pneumonia_hf.demo.check import check_space, compare, name_served
from pneumonia_hf.errors import HubError, UserError
from pneumonia_hf.models.model_folder import DEFAULT_MODEL

DRAWING = ROOT / "docs" / "drawn_xray.png"
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # gradio's client


@pytest.fixture(scope="module")
def default() -> Predictor:
    return Predictor.from_pretrained(DEFAULT_MODEL)


def test_the_saved_token_goes_to_no_address(monkeypatch):
    given = []

    def connect(address, token, **_):
        given.append((address, token))
        raise ConnectionError

    monkeypatch.setattr("gradio_client.Client", connect)
    monkeypatch.setattr(check, "find_space_address", lambda space: "https://me-demo.hf.space")
    for space in ("http://10.0.0.5:7860", "me/demo"):
        with pytest.raises(HubError, match="does not answer as this app"):
            check_space(space)
    # None: the client takes the saved one.
    assert given == [("http://10.0.0.5:7860", False), ("https://me-demo.hf.space", None)]


def test_a_running_app_answers_as_its_model_and_not_as_another(
    app_url, tiny_model, monkeypatch, capsys, tmp_path
):
    renamed = shutil.copytree(
        tiny_model, tmp_path / "renamed", ignore=shutil.ignore_patterns("checkpoints")
    )
    config = json.loads((renamed / "config.json").read_text())
    config["id2label"] = {"0": "healthy", "1": "Lung opacity"}
    config["label2id"] = {"healthy": 0, "Lung opacity": 1}
    (renamed / "config.json").write_text(json.dumps(config))
    for model, more, status, words in (
        (tiny_model, (), 0, "answers as its model does here."),
        (DEFAULT_MODEL, (), 1, "answers wrongly."),
        (renamed, ("--positive_label", "lung opacity"), 0, "answers as its model does here."),
    ):
        words_given = ["pneumonia-hf", "check", "--space", app_url, "--model", str(model), *more]
        monkeypatch.setattr(sys, "argv", words_given)
        assert commands.main() == status
        assert words in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the Hub's client
def test_the_lines_of_the_page_lead_from_a_model_to_a_checked_space(
    hub, own_client, app_url, tiny_model, tmp_path, monkeypatch, capsys
):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "NAME").symlink_to(tiny_model)
    monkeypatch.chdir(tmp_path)
    lines = [words for words in list_commands(PAGES["docs/hub.md"]) if words[0] == "pneumonia-hf"]
    assert [words[1] for words in lines] == ["push", "space", "check"]
    for words in lines:
        if words[1] == "check":
            # The Hub would run the Space with its variables; here it is the app of this model.
            space = hub.repositories["spaces/me/demo"]
            space.host, name = app_url, "{MODEL_ID}@{MODEL_REVISION}".format(**space.variables)
            monkeypatch.setattr(check, "name_served", lambda *_, name=name: name)
        monkeypatch.setattr(sys, "argv", words)
        assert not commands.main()
    assert "me/demo answers as its model does here." in capsys.readouterr().out
    exec(list_blocks(PAGES["docs/hub.md"], "python")[0].replace("xray.dcm", str(DRAWING)), {})
    assert capsys.readouterr().out.strip() in ("REFER", "NORMAL", "PNEUMONIA", "REFUSED")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"probability": 0.2004}, None),
        ({"decision": "NORMAL"}, "the decision is NORMAL and should be REFER"),
        ({"threshold": 0.9}, "the threshold is 0.9 and should be"),
        ({"probability": 0.3}, "the probability is 0.3"),
        ({"probability": None}, "the probability is None"),
        ({"label": None}, "the label is None"),
    ],
)
def test_each_difference_is_found(default, changes, words):
    expected = default.predict(check.draw_images()["a patient without an opacity"])
    expected = replace(expected, probability=0.2, decision="REFER")
    fault = compare(expected.to_dict() | changes, expected)
    assert fault is None if words is None else words in fault


def test_a_blank_image_is_decided_on_by_no_model(default):
    blank = default.predict(check.draw_images()["a blank image"])
    assert blank.decision in ("REFER", "REFUSED")


def test_name_that_an_app_gives_is_that_of_a_model():
    sha = 40 * "a"
    for name in ("me/x", "me/x@main"):  # a branch that may have moved
        assert name_served(f"{name} ({sha[:12]})", sha) == f"me/x@{sha}"
        assert name_served(name, None) == name
    assert name_served("default_model", None) == DEFAULT_MODEL
    with pytest.raises(UserError, match="name it as --model"):
        name_served("latest", None)


def test_a_space_that_does_not_run_is_one_sentence(hub, own_client):
    hub.repositories["spaces/me/demo"] = Repository(private=False)
    hub.repositories["spaces/me/demo"].commit("first", {"README.md": b"x"})
    with pytest.raises(HubError, match=r"does not run \(its stage is RUNTIME_ERROR\)"):
        check_space("me/demo")
    hub.repositories["spaces/me/demo"].host = "http://127.0.0.1:9"
    with pytest.raises(HubError, match=r"http://127.0.0.1:9 does not answer as this app"):
        check_space("me/demo")
    with pytest.raises(HubError, match=r"\((404|401)\)"):
        check_space("me/none")
