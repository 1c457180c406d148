"""What every request passes before gradio sees it, and what is kept of it."""

import json
from contextlib import suppress

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import ValidationError
from helpers import call


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
    assert status == 422 and b"upload the file itself" in body


def test_every_answer_has_safe_headers(app_url):
    for place in ("/", "/openapi.json", "/config", "/gradio_api/info", "/nowhere"):
        _, headers, _ = call(app_url + place)
        assert headers["X-Content-Type-Options"] == "nosniff", place
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "frame-ancestors" in headers["Content-Security-Policy"]


def test_a_request_without_end_is_cut_off(app_url):
    address = app_url + "/gradio_api/call/predict"
    # A client that is still sending when the answer comes sees a broken connection instead of it.
    for _ in range(5):
        status, _, body = call(address, b" " * 15_000_000)
        assert status == 413 and b"too long" in body
    sent = []

    def send_much():
        for number in range(1_000):
            sent.append(number)
            yield b" " * 1_000_000

    with suppress(OSError):
        call(address, send_much())
    assert len(sent) < 200


def test_the_python_client_shows_the_sentence_of_a_refusal(app_url):
    import httpx
    from gradio_client.utils import extract_validation_message

    client = Client(app_url, verbose=False)
    with pytest.raises(ValidationError, match="upload the file itself"):
        client.predict(handle_file("https://example.com/x.png"), api_name="/predict")
    with pytest.raises(ValidationError, match="upload the file itself"):
        client.predict([handle_file("https://example.com/x.png")], api_name="/predict_batch")
    client.close()
    long = httpx.post(f"{app_url}/gradio_api/queue/join", content=b" " * 5_000_000)
    unknown = httpx.post(f"{app_url}/gradio_api/queue/join",
                         json={"data": [], "fn_index": 999, "session_hash": "x"})  # fmt: skip
    assert "The request is too long" in extract_validation_message(long)
    assert "'Use via API' lists them" in extract_validation_message(unknown)


def test_several_mcp_calls_in_one_request_are_refused_alike(app_url):
    calls = [{"jsonrpc": "2.0", "id": 1, "params": {"image": "http://127.0.0.1:9/x.png"}}]
    status, _, body = call(app_url + "/gradio_api/mcp/", json.dumps(calls).encode())
    assert status == 200 and "are not read" in json.loads(body)["error"]["message"]


def test_mcp_messages_may_name_addresses_outside_of_what_tools_are_given():
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    from starlette.testclient import TestClient

    from pneumonia_hf.demo.guard import Guard

    app = Starlette(
        routes=[Route("/{path:path}", lambda _: PlainTextResponse("in"), methods=["POST"])],
        middleware=[Middleware(Guard, login=None, uploads="/nowhere")],
    )
    site = "https://example.com/"
    who = {"name": "x", "version": "1", "websiteUrl": site, "icons": [{"src": site}]}
    hello = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"clientInfo": who}}

    def ask(method="tools/call", **given):
        params = {"name": "predict", "arguments": given}
        return hello | {"method": method, "params": params}

    allowed = [hello, [hello], ask(image="data:,"), [hello, ask()], {"method": "x", "params": []},
               ask() | {"params": {"name": "predict", "_meta": {"x": site}}}]  # fmt: skip
    call = ask(image=site)
    refused = [
        *(call, [call], [hello, call], [[call]], ask(image={"path": "/etc/passwd"}), site),
        *(
            ask(files=[{"path": site}]),
            ask(image=" FILE:///etc/passwd"),
            ask("prompts/get", x=site),
        ),
        # Not well-formed.
        {"jsonrpc": "2.0", "id": 1, "params": hello["params"]},
        *(hello | one for one in ({"jsonrpc": "1.0"}, {"method": None}, {"params": [site]})),
    ]
    with TestClient(app) as served:
        for place in ("/gradio_api/mcp", "/gradio_api/mcp/", "/gradio_api/mcp/messages/"):
            for one in allowed:
                assert served.post(place, json=one).text == "in", one
            for one in refused:
                answer = served.post(place, json=one).json()
                assert "are not read" in answer["error"]["message"], one
        for place in ("/gradio_api/queue/join", "/gradio_api/mcpx", "/gradio_api/call/mcp"):
            assert "upload the file itself" in served.post(place, json=hello).text


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
