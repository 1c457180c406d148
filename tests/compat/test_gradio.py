"""Each part of gradio without a public name is still there, and still used.

tests/demo/test_app.py lists the tools over MCP, of which a hidden function is none, and
tests/demo/test_guard.py asks for unknown endpoints: both fail without the other two parts.
"""

import asyncio
from unittest.mock import Mock

import gradio as gr
import pytest

from pneumonia_hf.compat.gradio import (
    FAULT,
    SentenceBlocks,
    make_upload,
)
from pneumonia_hf.errors import UserError


def ask(demo: gr.Blocks, value: object) -> tuple[str, bool]:
    """Return the sentence of an answer, and whether gradio prints a traceback."""
    with pytest.raises(gr.Error) as found:
        asyncio.run(demo.process_api(0, [value]))
    return found.value.message, found.value.print_exception


def test_fault_of_the_app_is_a_sentence_and_asks_for_a_traceback_in_the_log(monkeypatch):
    def fail(kind):
        raise {"ours": RuntimeError("disk"), "theirs": UserError("Upload it.")}[kind]

    def fill_disk(*_):
        raise OSError(28, "No space left on device")

    with SentenceBlocks(analytics_enabled=False) as demo:
        box = gr.Textbox()
        gr.Button().click(fail, box, None)
    assert ask(demo, "ours") == (FAULT, True)
    assert ask(demo, "theirs") == ("Upload it.", False)
    monkeypatch.setattr(box, "preprocess", fill_disk)
    assert ask(demo, "theirs") == (FAULT, True)


def test_gradio_writes_no_type_stubs_of_components_whose_source_it_does_not_find(monkeypatch):
    import inspect

    from gradio import component_meta

    read = []
    monkeypatch.setattr(component_meta, "extract_class_source_code", lambda *_: read.append(_))
    monkeypatch.setattr(inspect, "getfile", Mock(side_effect=OSError))
    type("Part", (gr.Textbox,), {})
    assert read == []


def test_inputs_of_another_form_and_addresses_are_sentences():
    with SentenceBlocks(analytics_enabled=False) as demo:
        gr.Button().click(lambda file: None, make_upload(label="image"), None)
    sentence, traceback = ask(demo, 5)
    assert sentence.startswith("The value of image does not fit this endpoint") and not traceback
    address = {"path": "http://127.0.0.1:9/x.png", "meta": {"_type": "gradio.FileData"}}
    sentence, traceback = ask(demo, address)
    assert sentence.startswith("Addresses are not read") and not traceback


def test_description_of_an_upload_is_ours():
    with SentenceBlocks(analytics_enabled=False) as demo:
        gr.Button().click(lambda file: None, make_upload(), None, api_name="one")
    (parameter,) = demo.get_api_info()["named_endpoints"]["/one"]["parameters"]
    assert parameter["type"]["additional_description"] == "an uploaded file"
    assert parameter["example_input"]["path"] == "xray.png"
