"""Guard: what every request passes before gradio sees it: login, limits, and safe headers."""

from __future__ import annotations

import base64
import hmac
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from pneumonia_hf.compat.gradio import UNKNOWN_CALL
from pneumonia_hf.demo.limits import BUSY

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOG = logging.getLogger(__name__)
MOST_JSON_BYTES = 4_000_000  # of a request that is no upload
MOST_DISCARDED_BYTES = 16 * MOST_JSON_BYTES
STARTUP = "/gradio_api/startup-events"
NOT_A_FILE = (
    "Addresses and paths of the server are not read; upload the file itself (in Python: "
    "handle_file of a file of yours)."
)
API = "/gradio_api/"
NO_SUCH_CALL = "No endpoint has this name and these values; 'Use via API' lists them."
JOIN = "/gradio_api/queue/join"  # what gradio's clients ask
MCP = "/gradio_api/mcp"
ASK_LOGIN = 'Basic realm="X-rays", charset="UTF-8"'
NOT_AN_IMAGE = (
    "Addresses and paths of the server are not read; give the image itself, as data:...;base64,..."
)
ADDRESSES = ("http://", "https://", "ftp://", "file:")
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    # A Space is shown in a frame of huggingface.co; no other site may frame it.
    "content-security-policy": "frame-ancestors 'self' https://huggingface.co https://*.hf.space",
    "cross-origin-opener-policy": "same-origin",
}


class Guard:
    """ASGI middleware.

    With a login, every route wants it by HTTP Basic authentication: pages, files, the API and its
    description. JSON requests may name uploaded files only, so that nobody makes the server fetch
    an address or open one of its own files.
    """

    def __init__(self, app: ASGIApp, login: str | None, uploads: str) -> None:
        """Take the app, a login `user:password` or None, and the folder of uploads."""
        self.app = app
        self.login = login
        self.uploads = Path(uploads).resolve()
        self.started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers, send = Headers(scope=scope), _with_headers(send)
        # gradio asks its own server once, when it starts.
        starts = not self.started and scope["path"] == STARTUP
        self.started = self.started or starts
        if self.login and not starts and not self._is_logged_in(headers.get("authorization", "")):
            text = {"detail": "Log in with the user and password of this app."}
            answer = JSONResponse(text, 401, {"www-authenticate": ASK_LOGIN})
            await answer(scope, receive, send)
            return
        if scope["type"] == "http" and scope["method"] == "POST":
            kind = headers.get("content-type", "").split(";")[0].strip()
            if kind != "multipart/form-data":
                body = await _read(receive)
                if body is None:
                    answer = _refuse(scope["path"], 413, "The request is too long.")
                elif not self._names_uploads_only(scope["path"], body):
                    answer = _refuse_file(scope["path"], body)
                else:
                    answer = None
                if answer:
                    await answer(scope, receive, send)
                    return
                receive = _replay(body, receive)
        started = False

        async def note(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, note)
        except (UNKNOWN_CALL, KeyError, TypeError, ValueError) as error:
            # What gradio raises at a name, a number or values that it does not know.
            if started or scope.get("method") != "POST" or not scope["path"].startswith(API):
                raise
            LOG.warning("Refused a call: %r.", error)
            await _refuse(scope["path"], 400, NO_SUCH_CALL)(scope, receive, send)
        except RuntimeError as error:
            if not (started and isinstance(error.__cause__, HTTPException)):
                raise
            # The stream of an unknown call, which has said so.
            LOG.warning("Refused a call: %r.", error.__cause__)
            await note({"type": "http.response.body", "body": b""})

    def _is_logged_in(self, given: str) -> bool:
        scheme, _, coded = given.partition(" ")
        if scheme.lower() != "basic":
            return False
        try:
            text = base64.b64decode(coded.strip(), validate=True)
        except ValueError:
            return False
        return hmac.compare_digest(text, self.login.encode())  # takes as long for any text

    def _names_uploads_only(self, path: str, body: bytes) -> bool:
        """Return whether each file in a JSON body is inside of the folder of uploads."""
        try:
            content = json.loads(body)
        except (ValueError, RecursionError):
            return True  # gradio refuses what is not JSON
        if _is_mcp(path):
            content = _list_arguments(content)
        return all(self._is_upload(one) for one in _list_paths(content))

    def _is_upload(self, path: Any) -> bool:
        if not isinstance(path, str) or "\0" in path:
            return False
        if path.startswith("data:"):  # the bytes themselves, from a client without uploads
            return True
        try:
            return Path(path).resolve().is_relative_to(self.uploads)
        except (OSError, RuntimeError, ValueError):
            return False


def _is_mcp(path: str) -> bool:
    return path == MCP or path.startswith(f"{MCP}/")


def _list_arguments(content: Any) -> list[Any]:
    """Return the arguments in MCP messages; what is not well-formed is returned whole.

    Nobody reads the addresses elsewhere in a message: of a client's website and its icons. The
    method does not matter: at `prompts/get`, gradio calls a tool if no prompt has the name.
    """

    def read(message: Any) -> Any:
        match message:
            case {"jsonrpc": "2.0", "method": str(), "params": dict(params)}:
                return params.get("arguments")
        return message

    return [read(one) for one in (content if isinstance(content, list) else [content])]


def _list_paths(content: Any) -> Iterator[Any]:
    """Yield what names a file in a request: `path`, and any text that is an address."""
    stack = [content]
    while stack:
        one = stack.pop()
        if isinstance(one, dict):
            if one.get("path") is not None:
                yield one["path"]
            # A client repeats the address of its own upload as `url`; gradio does not read it.
            stack += [value for key, value in one.items() if key not in ("path", "url")]
        elif isinstance(one, list):
            stack += one
        elif isinstance(one, str) and one.lstrip().lower().startswith(ADDRESSES):
            yield one


async def _read(receive: Receive) -> bytes | None:
    """Return the body of a request; None if it is too long."""
    parts, length, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b""
        part = message.get("body", b"")
        length += len(part)
        if length <= MOST_JSON_BYTES:
            parts.append(part)
        # A client that is still sending would not see the answer: what is too long is read to its
        # end, unless that has no end.
        more = message.get("more_body", False) and length <= MOST_DISCARDED_BYTES
    return b"".join(parts) if length <= MOST_JSON_BYTES else None


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body once, and then what the client does."""
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _with_headers(send: Send) -> Send:
    """Return a `send` that adds HEADERS, and says in a sentence that the queue is full."""
    busy = False

    async def guarded(message: Message) -> None:
        nonlocal busy
        if message["type"] == "http.response.start":
            busy = message["status"] == 503
            headers = MutableHeaders(raw=list(message["headers"]))
            headers.update(HEADERS)
            if busy:
                del headers["content-length"]
                headers["retry-after"] = "10"
            message = message | {"headers": headers.raw}
        elif message["type"] == "http.response.body" and busy:
            body = b"" if message.get("more_body") else json.dumps({"detail": BUSY}).encode()
            message = message | {"body": body}
        await send(message)

    return guarded


def _refuse(path: str, status: int, text: str) -> JSONResponse:
    """Return an answer with a sentence, in the form that the client of `path` shows."""
    if path == JOIN:  # gradio_client shows the text of this answer alone
        fault = {"__type__": "validate", "is_valid": False, "parameter_name": "request"}
        return JSONResponse({"detail": [fault | {"message": text}]}, 422)
    return JSONResponse({"detail": text}, status)


def _refuse_file(path: str, body: bytes) -> JSONResponse:
    if not _is_mcp(path):
        return _refuse(path, 400, NOT_A_FILE)
    # Clients of MCP read errors of JSON-RPC only.
    asked = json.loads(body)  # an object, or a list of several
    number = asked.get("id") if isinstance(asked, dict) else None
    error = {"code": -32602, "message": NOT_AN_IMAGE}
    return JSONResponse({"jsonrpc": "2.0", "id": number, "error": error})
