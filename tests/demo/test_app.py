"""The endpoints of the app, called by the real client."""

import io
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile

import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from helpers import ROOT, draw_xray
from PIL import Image

from pneumonia_hf import Predictor, read_xray
from pneumonia_hf.demo.engine import Engine
from pneumonia_hf.demo.limits import Limits
from pneumonia_hf.inference.attribution_methods import METHODS
from pneumonia_hf.models.model_folder import DEFAULT_MODEL

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
    expected = Predictor.from_pretrained(tiny_model).predict(read_xray(image))
    assert result["probability"] == pytest.approx(expected.probability, abs=1e-5)
    assert result["threshold"] == expected.threshold
    assert (result["label"], result["decision"]) == (expected.label, expected.decision)
    assert result["warnings"] == list(expected.warnings)
    assert overlay is None  # a map takes longer than the decision


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"attention_rollout"}))  # no ViT
def test_endpoints_accept_every_method(client, image, method):
    result, overlay = client.predict(handle_file(image), method, api_name="/predict")
    with Image.open(overlay) as drawn:
        assert drawn.size == (300, 240)
        gray = np.asarray(drawn.convert("RGB"), int)
    assert result["decision"] and np.ptp(gray, axis=2).max() > 20  # the map is coloured
    explained, again = client.predict(handle_file(image), method, api_name="/explain")
    assert explained["method"] == method and explained["verdict"] == "not tested"
    with Image.open(again) as drawn:
        assert np.array_equal(np.asarray(drawn.convert("RGB"), int), gray)


def test_a_batch_keeps_its_order_and_names_what_cannot_be_read(client, image, tmp_path, tiny_model):
    other, text = tmp_path / "other.jpeg", tmp_path / "scan.jpeg"
    draw_xray(5, ill=False, size=(200, 260)).save(other)
    text.write_text("no image")
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.write(other, "folder/../../evil.jpeg")
        archive.writestr("readme.txt", "not an image")
    files = [handle_file(one) for one in (image, text, tmp_path / "more.zip", other)]
    found = client.predict(files, api_name="/predict_batch")
    assert [one["file"] for one in found] == ["xray.png", "scan.jpeg", "evil.jpeg", "other.jpeg"]
    assert "not an image that can be read" in found[1]["error"] and found[1]["decision"] is None
    predictor = Predictor.from_pretrained(tiny_model)
    for one, path in zip((found[0], found[2], found[3]), (image, other, other), strict=True):
        expected = predictor.predict(read_xray(path)).probability
        assert one["error"] is None
        assert one["probability"] == pytest.approx(expected, abs=1e-5)


def test_an_mcp_client_gets_the_same_answer_and_no_address_is_read(app_url, image, tiny_model):
    import asyncio
    import base64

    from mcp import ClientSession, McpError
    from mcp.client.streamable_http import streamable_http_client

    coded = "data:image/png;base64," + base64.b64encode(image.read_bytes()).decode()

    async def ask():
        async with (
            streamable_http_client(app_url + "/gradio_api/mcp/") as (reading, writing, _),
            ClientSession(reading, writing) as session,
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
    expected = Predictor.from_pretrained(tiny_model).predict(read_xray(image)).probability
    assert not answer.isError and f"'probability': {expected:.6f}"[:-1] in answer.content[0].text
    assert path.isError and "root:" not in path.content[0].text


def test_several_mcp_calls_in_one_request_are_refused_alike(app_url):
    calls = [{"jsonrpc": "2.0", "id": 1, "params": {"image": "http://127.0.0.1:9/x.png"}}]
    status, _, body = call(app_url + "/gradio_api/mcp/", json.dumps(calls).encode())
    assert status == 200 and "are not read" in json.loads(body)["error"]["message"]


def test_old_uploads_and_empty_folders_are_deleted(tmp_path):
    from pneumonia_hf.demo.uploads import delete_old, delete_regularly

    for name in ("old/a.png", "mixed/b.png", "mixed/new.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "mixed" / "new.png")
    for name in ("old/a.png", "mixed/b.png", "old", "mixed"):
        os.utime(tmp_path / name, (0, 0))
    os.utime(tmp_path / "link", (0, 0), follow_symlinks=False)
    delete_old(tmp_path, 60)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left in ({"mixed", "mixed/new.png"}, {"mixed", "mixed/new.png", "old"})
    os.utime(tmp_path / "mixed" / "new.png", (0, 0))
    delete_regularly(tmp_path, 2)
    deadline = time.time() + 20
    while list(tmp_path.rglob("*")) and time.time() < deadline:
        time.sleep(0.1)
    assert not list(tmp_path.rglob("*"))


def test_model_info_has_what_a_program_needs_and_no_path(client, tiny_model):
    found = client.predict(api_name="/model_info")
    assert found["threshold"] == Predictor.from_pretrained(tiny_model).operating_point.threshold
    assert found["labels"] == ["NORMAL", "PNEUMONIA"] and found["default_method"] == "gradcam"
    assert found["limits"]["batch"] == Limits().batch
    assert str(tiny_model.parent) not in json.dumps(found)


def test_16_bit_image_is_not_clipped_to_white(client, tmp_path, tiny_model):
    values = np.asarray(draw_xray(4, ill=True, size=(300, 240))).astype(np.uint16) * 12 + 200
    path = tmp_path / "deep.png"
    Image.fromarray(values).save(path)
    result, _ = client.predict(handle_file(path), api_name="/predict")
    expected = Predictor.from_pretrained(tiny_model).predict(read_xray(path))
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


def call(url: str, body: bytes | None = None, headers: dict[str, str] | None = None):
    """Return status, headers and body of a request."""
    request = urllib.request.Request(url, body, headers or {})
    if body is not None:
        request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


@pytest.mark.parametrize(
    "path",
    ["http://127.0.0.1:9/x.png", "https://example.com/x.png", "file:///etc/passwd", "/etc/passwd",
     "../../../etc/passwd", "/tmp/gradio/../../etc/passwd", "/proc/self/environ", "x\0y"],
)  # fmt: skip
def test_addresses_and_paths_of_the_server_are_refused(app_url, path):
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    for place in ("/gradio_api/call/predict", "/gradio_api/run/predict"):
        status, _, body = call(app_url + place, json.dumps({"data": [file, "none"]}).encode())
        assert status == 400 and b"upload the file itself" in body, (place, status, body)
    nested = {"data": [[file]], "fn_index": 2, "session_hash": "x"}
    status, _, body = call(app_url + "/gradio_api/queue/join", json.dumps(nested).encode())
    assert status == 400 and b"upload the file itself" in body


def test_every_answer_has_safe_headers(app_url):
    for place in ("/", "/openapi.json", "/config", "/gradio_api/info", "/nowhere"):
        _, headers, _ = call(app_url + place)
        assert headers["X-Content-Type-Options"] == "nosniff", place
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "frame-ancestors" in headers["Content-Security-Policy"]


def test_a_request_without_end_is_cut_off(app_url):
    status, _, body = call(app_url + "/gradio_api/call/predict", b" " * 5_000_000)
    assert status == 413 and b"too long" in body


def test_only_the_documented_endpoints_are_public(client):
    found = client.view_api(return_format="dict")
    assert list(found["named_endpoints"]) == ENDPOINTS and not found["unnamed_endpoints"]
    names = [one["parameter_name"] for one in found["named_endpoints"]["/predict"]["parameters"]]
    assert names == ["image", "method"]


def test_page_states_its_limits_and_loads_nothing_from_other_servers(app_url):
    with urllib.request.urlopen(app_url, timeout=10) as answer:
        page = answer.read().decode()
    assert "not a medical device" in page
    assert not re.findall(r'(?:src|href)="https?://(?!127\.0\.0\.1)[^"]*\.(?:js|css|woff2?)', page)


def test_a_login_is_wanted_by_every_route():
    import base64

    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    from starlette.testclient import TestClient

    from pneumonia_hf.demo.guard import Guard

    app = Starlette(
        routes=[Route("/{path:path}", lambda request: PlainTextResponse("in"))],
        middleware=[Middleware(Guard, login="ann:secret word", uploads="/nowhere")],
    )
    inside = {"Authorization": "Basic " + base64.b64encode(b"ann:secret word").decode()}
    with TestClient(app) as served:
        for place in ("/", "/openapi.json", "/gradio_api/file=x", "/gradio_api/info"):
            refused = served.get(place)
            assert refused.status_code == 401 and "WWW-Authenticate" in refused.headers
            assert served.get(place, headers=inside).text == "in"
        for wrong in (
            "Basic",
            "Basic !!",
            "Bearer x",
            "Basic " + base64.b64encode(b"ann:").decode(),
        ):
            assert served.get("/", headers={"Authorization": wrong}).status_code == 401


@pytest.mark.slow
def test_the_app_with_a_login_serves_those_who_have_it(tiny_model):
    import base64

    from conftest import find_free_port, serve_app

    port = find_free_port()
    coded = base64.b64encode(b"ann:secret word").decode()
    with serve_app(tiny_model, port, APP_LOGIN="ann:secret word") as url:
        for place in ("/", "/openapi.json", "/config", "/gradio_api/info", "/theme.css",
                      "/gradio_api/startup-events", "/gradio_api/file=/etc/passwd"):  # fmt: skip
            assert call(url + place)[0] == 401, place
        client = Client(url, headers={"Authorization": f"Basic {coded}"}, verbose=False)
        assert client.predict(api_name="/model_info")["labels"] == ["NORMAL", "PNEUMONIA"]
        client.close()
        with pytest.raises(Exception, match=r"401|[Uu]nauthorized|login"):
            Client(url, verbose=False)


def test_a_full_queue_is_one_sentence():
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.responses import JSONResponse
    from starlette.routing import Route
    from starlette.testclient import TestClient

    from pneumonia_hf.demo.guard import Guard

    full = JSONResponse({"detail": "Queue is full. Max size is 64."}, status_code=503)
    app = Starlette(
        routes=[Route("/", lambda request: full)],
        middleware=[Middleware(Guard, login=None, uploads="/nowhere")],
    )
    with TestClient(app) as served:
        answer = served.get("/")
    assert answer.status_code == 503 and "try again" in answer.json()["detail"]
    assert answer.headers["retry-after"]


@pytest.mark.slow
def test_mistakes_end_the_app_with_one_sentence():
    for variables, sentence in (
        ({"MODEL_ID": "./nothing"}, "error: The model folder ./nothing"),
        ({"MAX_BATCH": "many"}, "error: MAX_BATCH is 'many'"),
        ({"APP_LOGIN": "ann"}, "error: APP_LOGIN must be user:password"),
    ):
        done = subprocess.run(
            [sys.executable, str(ROOT / "app.py")],
            env=os.environ | variables,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        assert done.stderr.strip().splitlines()[-1].startswith(sentence)
        assert "Traceback" not in done.stderr


def make_zip(**contents: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture
def engine(tiny_model):
    return Engine(Predictor.from_pretrained(tiny_model), Limits(upload_mb=1, batch=3))


def test_a_batch_is_bounded(engine, image, tmp_path, monkeypatch):
    from pneumonia_hf.errors import UserError

    read, asked = zipfile.ZipExtFile.read, []
    monkeypatch.setattr(
        zipfile.ZipExtFile, "read", lambda self, n=-1: asked.append(n) or read(self, n)
    )

    many = tmp_path / "many.zip"
    many.write_bytes(make_zip(**{f"{n}.png": image.read_bytes() for n in range(9)}))
    with pytest.raises(UserError, match="more than 3 images"):
        list(engine.score_batch([str(many)]))
    bomb = tmp_path / "bomb.zip"
    bomb.write_bytes(make_zip(**{"a.png": b"\0" * 3_000_000}))
    assert bomb.stat().st_size < 10_000
    ((row,),) = engine.score_batch([str(bomb)])
    assert row.prediction is None and "larger than the limits" in row.fault
    assert all(0 <= one <= 1_000_001 for one in asked)  # never all of an entry, whatever its size
    torn = tmp_path / "torn.zip"
    torn.write_bytes(many.read_bytes()[:700])
    ((row,),) = engine.score_batch([str(torn)])
    assert row.prediction is None and "torn.zip" in row.fault
    large = tmp_path / "large.png"
    large.write_bytes(b"\x89PNG" + b"\0" * 2_000_000)
    ((row,),) = engine.score_batch([str(large)])
    assert "more than the 1 MB" in row.fault


def test_the_default_method_is_the_best_of_those_that_passed_their_tests(tiny_model, tmp_path):
    import shutil

    model = tmp_path / "model"
    shutil.copytree(tiny_model, model, ignore=shutil.ignore_patterns("checkpoints"))
    predictor = Predictor.from_pretrained(model)
    assert Engine(predictor, Limits()).default_method == "gradcam"
    assert Engine(predictor, Limits()).title_of("gradcam") == "Grad-CAM (not tested)"

    def test_of(best, **verdicts):
        results = [{"method": name, "verdict": one} for name, one in verdicts.items()]
        return {"data": "x", "faithfulness": {"best": best, "results": results}}

    first = test_of("occlusion", gradcam="fail", occlusion="pass", multi_layer="pass")
    second = test_of(None, gradcam="pass", multi_layer="fail")
    (model / "reports.json").write_text(json.dumps([{"data": "old"}, first, second]))
    engine = Engine(predictor, Limits())
    assert engine.default_method == "occlusion"
    assert engine.title_of("gradcam") == "Grad-CAM (failed a test)"
    assert engine.title_of("occlusion") == "Occlusion (passed its tests)"
    assert engine.title_of("multi_layer") == "Grad-CAM of several layers (failed a test)"
    (model / "reports.json").write_text(json.dumps([test_of(None, gradcam="fail")]))
    assert Engine(predictor, Limits()).default_method == "gradient_x_activation"


def test_a_mask_hides_the_border_and_a_part_and_nothing_else():
    from pneumonia_hf.demo.engine import FILLS, mask

    image = draw_xray(4, ill=True, size=(200, 100))
    before = np.asarray(image)
    hidden = np.ones((100, 200), bool)
    hidden[10:90, 20:180] = False
    hidden[40:60, 50:100] = True
    for fill in FILLS:
        found = np.asarray(mask(image, 0.1, (0.25, 0.4, 0.5, 0.6), fill))
        assert (found[~hidden] == before[~hidden]).all()
        assert (found[hidden] != before[hidden]).mean() > 0.5
    assert (np.asarray(mask(image, 0.1, (0.25, 0.4, 0.5, 0.6)))[hidden] == 0).all()
    assert np.array_equal(np.asarray(mask(image, 0, None)), before)


def test_images_scored_alike_are_counted_at_half_prevalence():
    from pneumonia_hf.demo.answers import find_scored_alike, to_percent

    bins = [
        {"images": 80, "mean_probability": 0.5, "share": 0.2, "low": 0.1, "high": 0.3},
        {"images": 90, "mean_probability": 0.9, "share": 0.9, "low": 0.8, "high": 0.95},
    ]
    report = {"data": "x", "n": 170, "prevalence": 0.75, "calibration": {"bins": bins}}
    few = report | {"data": "few", "n": 16}
    # At 75% the odds are three times those at 50%: 0.9 there is 0.75, and 0.5 is 0.25.
    found = find_scored_alike([{"data": "old"}, few, report], 0.8)
    assert (found.images, found.data) == (90, "x")
    assert found.ill == pytest.approx(75) and found.low == pytest.approx(100 * 4 / 7)
    assert find_scored_alike([report], 0.1).images == 80
    assert find_scored_alike([], 0.5) is None
    # The reports of a model folder hold what the page needs.
    own = find_scored_alike(json.loads((DEFAULT_MODEL / "reports.json").read_text()), 0.99)
    assert own.images > 50 and own.low < own.ill <= own.high
    assert [to_percent(one) for one in (0.0001, 0.052, 0.5, 0.9996)] == [
        "below 0.1%", "5.2%", "50%", "above 99.9%",
    ]  # fmt: skip
