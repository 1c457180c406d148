"""The parts of gradio without a public name that the app needs; imported by `demo` alone.

SentenceBlocks replaces two methods of Blocks, make_upload three of a file component, hide_from_mcp
sets a mark of a function, and UNKNOWN_CALL is what gradio raises at a name that it does not know.
tests/compat/test_gradio.py fails when one of them is renamed or no longer used.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio.route_utils import FnIndexInferError

from pneumonia_hf.errors import UserError

UNKNOWN_CALL = FnIndexInferError
LOG = logging.getLogger(__name__)
MISFIT = "The request does not fit this endpoint; 'Use via API' shows what it takes."
FAULT = "The app failed, and its log says why; the same request may work later."


class SentenceBlocks(gr.Blocks):
    """Blocks that answer a visitor's mistake without a traceback in the log.

    Plain Blocks answer `{"error": null}` to wrong inputs and to errors of other classes than
    gradio's.
    """

    async def preprocess_data(self, *arguments: Any, **options: Any) -> Any:
        """Convert the inputs of a request."""
        try:
            return await super().preprocess_data(*arguments, **options)
        except gr.Error as error:
            raise to_gradio(error.message) from error
        except Exception as error:  # gradio's components have no common class of errors
            cause = error.__cause__ or error
            if isinstance(cause, OSError | MemoryError):
                raise  # a fault of the app
            LOG.warning("Refused the inputs of a call: %s.", type(cause).__name__)
            raise to_gradio(MISFIT) from error

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
    file.example_payload = lambda: [example] if several else example
    file.api_info = lambda: schema | {"additional_description": "an uploaded file"}
    return file


def hide_from_mcp(function: Callable) -> None:
    """Keep an endpoint from being an MCP tool."""
    function._mcp_type = "hidden"
