"""The parts of gradio without a public name that the app needs; imported by `demo` alone.

SentenceBlocks replaces two methods of Blocks and four of its MCP server, make_upload three of a
file component, hide_from_mcp sets a mark of a function, and UNKNOWN_CALL is what gradio raises at a
name that it does not know.
tests/compat/test_gradio.py fails when one of them is renamed or no longer used.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
from gradio.data_classes import ListFiles
from gradio.route_utils import FnIndexInferError
from gradio.utils import get_function_description
from starlette.responses import JSONResponse

from pneumonia_hf.errors import UserError

UNKNOWN_CALL = FnIndexInferError
LOG = logging.getLogger(__name__)
MISFIT = (
    "The request does not fit this endpoint, which takes {names}; 'Use via API' shows an example."
)
WRONG_VALUE = (
    "The value of {name} does not fit this endpoint, which takes {wanted}; 'Use via API' shows an "
    "example."
)
FAULT = "The app failed, and its log says why; the same request may work later."


class SentenceBlocks(gr.Blocks):
    """Blocks that answer a visitor's mistake without a traceback in the log.

    Plain Blocks answer `{"error": null}` to wrong inputs and to errors of other classes than
    gradio's.
    """

    @property
    def mcp_server_obj(self) -> Any:
        """gradio's MCP server, described in our words; None without one."""
        return self._mcp_server

    @mcp_server_obj.setter
    def mcp_server_obj(self, server: Any) -> None:
        self._mcp_server = _describe_mcp(server) if server else None

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], *arguments: Any, **options: Any
    ) -> Any:
        """Convert the inputs of a request."""
        try:
            inputs = _check_files(block_fn.inputs, inputs)
            return await super().preprocess_data(block_fn, inputs, *arguments, **options)
        except gr.Error as error:
            raise to_gradio(error.message) from error
        except Exception as error:  # gradio's components have no common class of errors
            cause = error.__cause__ or error
            if isinstance(cause, OSError | MemoryError):
                raise  # a fault of the app
            LOG.warning("Refused the inputs of a call: %s.", type(cause).__name__)
            names = ", ".join(str(one.label) for one in block_fn.inputs) or "no values"
            raise to_gradio(MISFIT.format(names=names)) from error

    async def process_api(self, *arguments: Any, **options: Any) -> Any:
        """Answer a request."""
        try:
            return await super().process_api(*arguments, **options)
        except UserError as error:
            raise to_gradio(str(error)) from error
        except gr.Error:
            raise
        except Exception as error:
            raise gr.Error(FAULT) from error  # with a traceback in the log


def _check_files(parts: Sequence[Any], values: list[Any]) -> list[Any]:
    """Return the inputs of a request, with a list of one file where several may be given.

    Raises:
        gr.Error: a value is no file, in a sentence that names the parameter.
    """
    checked = list(values)
    for place, (part, value) in enumerate(zip(parts, values, strict=False)):
        if not isinstance(part, gr.File) or value is None:
            continue
        several = part.data_model is ListFiles
        # The examples of gradio's page for JavaScript and curl give one file.
        if several and isinstance(value, dict):
            checked[place] = [value]
        try:
            part.data_model.model_validate(checked[place], context={"validate_meta": True})
        except ValueError as error:  # or pydantic's, which is one
            wanted = "a list of uploaded files" if several else "one uploaded file"
            raise to_gradio(
                WRONG_VALUE.format(name=part.label or "the file", wanted=wanted)
            ) from error
    return checked


def _describe_mcp(server: Any) -> Any:
    """Return gradio's MCP server with descriptions of what this app takes.

    gradio's own list hidden tools, break sentences with commas, and offer addresses and a tool for
    uploads, which are both refused.
    """
    server.tool_to_endpoint = {
        tool: endpoint
        for tool, endpoint in server.tool_to_endpoint.items()
        if not hasattr(server.get_block_fn_from_endpoint_name(endpoint).fn, "_mcp_type")
    }
    simplify, complete = server.simplify_filedata_schema, server.get_complete_schema

    def describe(block_fn: Any, _: str) -> tuple[str, dict[str, str]]:
        text, parameters, returns = get_function_description(block_fn.fn)
        return " ".join([text, *(["Returns:", *returns] if returns else [])]), parameters

    def simplify_schema(schema: dict[str, Any]) -> tuple[dict[str, Any], list]:
        schema, places = simplify(schema)
        for (name,) in places:
            about = schema["properties"][name].get("description", "")
            schema["properties"][name] = {
                "type": "string", "format": "data-url", "description": about,
            }  # fmt: skip
        return schema, places

    async def complete_schema(request: Any) -> JSONResponse:
        tools = json.loads((await complete(request)).body)
        for tool in tools:
            tool["meta"]["file_data_present"] = False  # the page would offer the tool for uploads
        return JSONResponse(tools)

    server.get_fn_description, server.simplify_filedata_schema = describe, simplify_schema
    server.get_complete_schema = complete_schema
    return server


def to_gradio(text: str) -> gr.Error:
    """Return an error with a sentence for the visitor."""
    return gr.Error(text, print_exception=False)


# What gradio's FileData is in JSON.
FILE = {
    "title": "FileData",
    "type": "object",
    "required": ["path"],
    "properties": {
        "path": {"title": "Path", "type": "string"},
        "orig_name": {"title": "Orig Name", "type": "string"},
        "meta": {
            "title": "FileDataMeta",
            "type": "object",
            "required": ["_type"],
            "properties": {"_type": {"const": "gradio.FileData", "type": "string"}},
        },
    },
}


def make_upload(**options: Any) -> gr.File:
    """Return a gradio file that is never fetched from an address that a client names.

    Not a subclass, which gradio would take for a custom component with a frontend of its own.
    """
    file = gr.File(**options)
    copy = file.async_move_resource_to_block_cache

    async def copy_or_refuse(url_or_file_path: Any) -> Any:
        if str(url_or_file_path).lower().startswith(("http:", "https:")):
            raise to_gradio("Addresses are not read; upload the file itself.")
        return await copy(url_or_file_path)

    file.async_move_resource_to_block_cache = copy_or_refuse
    # Without references, which an MCP client cannot resolve in a list, and in our words.
    several = options.get("file_count") == "multiple"
    schema = {"type": "array", "items": FILE} if several else FILE
    # gradio's own example is an address, which is refused.
    example = {"path": "xray.png", "url": "xray.png", "meta": {"_type": "gradio.FileData"}}
    # One file also for several, which are then a list of one: gradio's example for JavaScript is
    # made from one.
    file.example_payload = lambda: example
    described = "uploaded files" if several else "an uploaded file"
    file.api_info = lambda: schema | {"additional_description": described}
    return file


def hide_from_mcp(function: Callable) -> None:
    """Keep an endpoint from being an MCP tool."""
    function._mcp_type = "hidden"
