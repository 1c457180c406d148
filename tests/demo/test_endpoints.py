"""The endpoints of the app, called by the real client."""

import csv
import json
import re
import urllib.request
import zipfile

import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from helpers import call, call_script, draw_xray
from PIL import Image
from xray_files import make_dicom

from pneumonia_hf import Predictor
from pneumonia_hf.demo.limits import Limits
from pneumonia_hf.imaging.read import IMAGE_SUFFIXES
from pneumonia_hf.inference.attribution_methods import METHODS

ENDPOINTS = ["/predict", "/explain", "/predict_batch", "/model_info"]


@pytest.fixture(scope="module")
def client(app_url, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("client"))
        client = Client(app_url, verbose=False, download_files=tmp_path_factory.mktemp("files"))
        yield client
        client.close()


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "xray.png"
    draw_xray(4, ill=True, size=(300, 240)).save(path)
    return path


def test_endpoint_returns_the_prediction_of_the_predictor_and_no_map(client, image, tiny_model):
    result, overlay = client.predict(image=handle_file(image), api_name="/predict")
    expected = Predictor.from_pretrained(tiny_model).predict(image)
    assert result["probability"] == pytest.approx(expected.probability, abs=1e-5)
    assert result["threshold"] == expected.threshold
    assert (result["label"], result["decision"]) == (expected.label, expected.decision)
    assert result["warnings"] == list(expected.warnings)
    assert overlay is None  # a map takes longer than the decision


@pytest.mark.parametrize("method", sorted(METHODS))
def test_endpoints_accept_every_method(client, image, method):
    result, overlay = client.predict(handle_file(image), method, api_name="/predict")
    with Image.open(overlay) as drawn:
        assert drawn.size == (300, 240)
        gray = np.asarray(drawn.convert("RGB"), int)
    # The bias decides on this image, and no place raises the score: `cam` is dark.
    is_coloured = np.ptp(gray, axis=2).max() > 20
    assert result["decision"] and is_coloured == (method != "cam")
    explained, again = client.predict(handle_file(image), method, api_name="/explain")
    assert explained["method"] == method and explained["verdict"] == "not tested"
    with Image.open(again) as drawn:
        assert np.array_equal(np.asarray(drawn.convert("RGB"), int), gray)


def test_a_batch_keeps_its_order_and_names_what_cannot_be_read(client, image, tmp_path, tiny_model):
    other, text = tmp_path / "other.jpeg", tmp_path / "scan.jpeg"
    draw_xray(5, ill=False, size=(200, 260)).save(other)
    text.write_text("no image")
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.writestr("folder/../../evil.jpeg", other.read_bytes())
        archive.writestr("readme.txt", "not an image")
    files = [handle_file(one) for one in (image, text, tmp_path / "more.zip", other)]
    found = client.predict(files, api_name="/predict_batch")
    names = ["xray.png", "scan.jpeg", "folder/evil.jpeg", "other.jpeg"]
    assert [one["file"] for one in found] == names
    assert "not an image that can be read" in found[1]["error"] and found[1]["decision"] is None
    predictor = Predictor.from_pretrained(tiny_model)
    for one, path in zip((found[0], found[2], found[3]), (image, other, other), strict=True):
        expected = predictor.predict(path).probability
        assert one["error"] is None
        assert one["probability"] == pytest.approx(expected, abs=1e-5)


def test_an_mcp_client_gets_the_same_answer_and_no_address_is_read(app_url, image, tiny_model):
    import asyncio
    import base64

    from mcp import ClientSession, McpError
    from mcp.client.streamable_http import streamable_http_client
    from mcp.types import Icon, Implementation

    site = "https://example.com/"
    icons = [Icon(src=f"{site}icon.png")]
    who = Implementation(name="x", version="1", websiteUrl=site, icons=icons)
    coded = "data:image/png;base64," + base64.b64encode(image.read_bytes()).decode()

    async def ask():
        async with (
            streamable_http_client(app_url + "/gradio_api/mcp/") as (reading, writing, _),
            ClientSession(reading, writing, client_info=who) as session,
        ):
            await session.initialize()
            tools = (await session.list_tools()).tools
            answer = await session.call_tool("predict", {"image": coded})
            path = await session.call_tool("predict", {"image": "/etc/passwd"})
            with pytest.raises(McpError, match="Addresses and paths of the server are not read"):
                await session.call_tool("predict", {"image": "http://127.0.0.1:9/x.png"})
            return [tool.name for tool in tools], answer, path

    tools, answer, path = asyncio.run(ask())
    assert tools == ["predict", "explain", "model_info"]
    expected = Predictor.from_pretrained(tiny_model).predict(image).probability
    assert not answer.isError and f"'probability': {expected:.6f}"[:-1] in answer.content[0].text
    assert path.isError and "root:" not in path.content[0].text


def test_model_info_has_what_a_program_needs_and_no_path(client, tiny_model):
    found = client.predict(api_name="/model_info")
    assert found["threshold"] == Predictor.from_pretrained(tiny_model).operating_point.threshold
    assert found["labels"] == ["NORMAL", "PNEUMONIA"] and found["offered_method"] == "cam"
    assert found["default_method"] is None  # it has no report
    assert found["limits"]["batch"] == Limits().batch
    assert str(tiny_model.parent) not in json.dumps(found)


def test_app_and_script_agree_on_every_kind_of_file(client, tmp_path, tiny_model):
    drawn = draw_xray(4, ill=True, size=(300, 240))
    files = []
    for suffix in sorted(IMAGE_SUFFIXES):
        files.append(tmp_path / f"xray{suffix}")
        if suffix in (".dcm", ".dicom"):
            files[-1].write_bytes(make_dicom(np.asarray(drawn).astype(np.uint16) * 9))
        else:
            drawn.save(files[-1])
    table = tmp_path / "table.csv"
    done = call_script("predict.py", "--model", tiny_model, "--input", *files, "--output", table)
    assert done.returncode == 0, done.stderr
    with table.open() as lines:
        expected = [float(row["probability"]) for row in csv.DictReader(lines)]
    assert len(expected) == len(files) >= 6
    one_by_one = [client.predict(handle_file(file), api_name="/predict")[0] for file in files]
    together = client.predict([handle_file(file) for file in files], api_name="/predict_batch")
    for found in (one_by_one, together):
        assert [one["probability"] for one in found] == pytest.approx(expected, abs=1e-5)


def test_16_bit_image_is_not_clipped_to_white(client, tmp_path, tiny_model):
    values = np.asarray(draw_xray(4, ill=True, size=(300, 240))).astype(np.uint16) * 12 + 200
    path = tmp_path / "deep.png"
    Image.fromarray(values).save(path)
    result, _ = client.predict(handle_file(path), api_name="/predict")
    expected = Predictor.from_pretrained(tiny_model).predict(path)
    assert result["probability"] == pytest.approx(expected.probability, abs=1e-5)


def test_endpoint_reports_bad_input_in_the_usual_sentence(client, image, tmp_path):
    text = tmp_path / "scan.jpeg"
    text.write_text("no image")
    with pytest.raises(AppError, match=r"scan.jpeg is not an image that can be read"):
        client.predict(handle_file(text), api_name="/predict")
    with pytest.raises(AppError, match="Upload a chest X-ray first"):
        client.predict(None, api_name="/predict")
    with pytest.raises(AppError, match="upload X-rays or a zip file"):
        client.predict([], api_name="/predict_batch")
    result, _ = client.predict(handle_file(image), api_name="/predict")
    assert result["decision"]  # the app still works


def test_only_the_documented_endpoints_are_public(client):
    found = client.view_api(return_format="dict")
    assert list(found["named_endpoints"]) == ENDPOINTS and not found["unnamed_endpoints"]
    names = [one["parameter_name"] for one in found["named_endpoints"]["/predict"]["parameters"]]
    assert names == ["image", "method"]


def test_examples_of_the_api_are_what_the_app_takes(client, app_url, image, monkeypatch):
    info = json.loads(urllib.request.urlopen(f"{app_url}/gradio_api/info", timeout=10).read())
    for name in ("/predict", "/explain", "/predict_batch"):
        snippets = info["named_endpoints"][name]["code_snippets"]
        file = "handle_file('xray.png')"
        given = f"files={file}" if name == "/predict_batch" else f"image={file}"
        assert f"{given}," in snippets["python"]
        assert 'fetch("xray.png")' in snippets["javascript"]
        assert not re.search(r"https?://(?!127\.0\.0\.1)", "".join(
            snippets[one] for one in ("python", "javascript", "bash")))  # fmt: skip
    monkeypatch.chdir(image.parent)
    for name in ("/predict", "/predict_batch"):
        program = info["named_endpoints"][name]["code_snippets"]["python"]
        found = {}
        exec(program.replace("print(result)", ""), found)
        assert found["result"][0]["decision"]


def test_mcp_describes_the_tools_that_it_has_and_what_they_take(app_url):
    """The page 'Use via MCP' shows this list."""
    tools = json.loads(
        urllib.request.urlopen(f"{app_url}/gradio_api/mcp/schema", timeout=10).read()
    )
    assert [one["name"] for one in tools] == ["predict", "explain", "model_info"]
    for tool in tools:
        text = json.dumps(tool)
        assert ",," not in text and "http" not in text and "upload" not in text
        assert not tool["meta"]["file_data_present"]
    assert tools[0]["inputSchema"]["properties"]["image"]["format"] == "data-url"
    assert "warnings, the distance from the training images and" in tools[0]["description"]


def ask(url: str, name: str, content: object, version: str = "") -> str:
    """Return what `/call/name` answers."""
    place = f"{url}/gradio_api/call{version}/{name}"
    status, _, body = call(place, json.dumps(content).encode())
    if status != 200:
        return f"{status} {body.decode()}"
    return call(f"{url}/gradio_api/call/{name}/{json.loads(body)['event_id']}")[2].decode()


def test_wrong_calls_get_a_sentence_and_leave_no_traceback(app_url, client, image, tiny_model):
    import httpx

    log = tiny_model.parent / "app.log"
    before = log.stat().st_size
    files = {"files": ("xray.png", image.read_bytes())}
    (path,) = httpx.post(app_url + "/gradio_api/upload", files=files).json()
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    for wrong, named in (
        ([file], "takes image, method"),
        ([], "takes image, method"),
        (["text", "none"], "The value of image"),
        ([5, "none"], "The value of image"),
        ([{"path": path}, "none"], "The value of image"),
        ([{}, "none"], "The value of image"),
    ):
        found = ask(app_url, "predict", {"data": wrong})
        assert "does not fit this endpoint" in found and named in found, (wrong, found)
    assert "not in the list of choices" in ask(app_url, "predict", {"data": [file, "eigencam"]})
    assert "The value of files does not fit" in ask(app_url, "predict_batch", {"data": [5]})
    one, several = (ask(app_url, "predict_batch", {"data": [given]}) for given in (file, [file]))
    assert one == several and one.startswith("event: complete")
    for name, content, version in (
        ("nothing", {"data": [file]}, ""),
        ("nothing", {"image": file}, "/v2"),
        ("predict", {}, "/v2"),
        ("predict", {"xray": file}, "/v2"),
    ):
        found = ask(app_url, name, content, version)
        assert found.startswith("400") and "'Use via API' lists them" in found, found
    for place, content in (
        ("run/nothing", {"data": [file]}),
        ("queue/join", {"data": [file], "fn_index": 999, "session_hash": "x"}),
    ):
        status, _, body = call(f"{app_url}/gradio_api/{place}", json.dumps(content).encode())
        assert status in (400, 422) and b"lists them" in body, (place, status, body)
    status, _, body = call(app_url + "/gradio_api/call/predict/0123456789abcdef")
    assert status == 200 and body.startswith(b"event: error"), body
    # A program that names the fields, or sends null for what it leaves out.
    for content, version in (({"image": file}, "/v2"), ({"data": [file, None]}, "")):
        found = ask(app_url, "predict", content, version)
        assert found.startswith("event: complete") and found.rstrip().endswith(", null]"), found
    found = ask(app_url, "explain", {"data": [file, None]})
    assert found.startswith("event: complete") and '"method": "cam"' in found
    assert "Traceback" not in log.read_bytes()[before:].decode(errors="replace")
