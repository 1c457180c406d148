"""SentenceBlocks: gradio's Blocks, whose errors are sentences for the visitor."""

from __future__ import annotations

import logging
from typing import Any

import gradio as gr

from pneumonia_hf.errors import UserError

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
