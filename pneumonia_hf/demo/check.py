"""check_space: whether a running app gives the answers of its model."""

from __future__ import annotations

import math
import ssl
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from pneumonia_hf.errors import HubError, ModelError, UserError
from pneumonia_hf.hub import ADDRESSES, HUB_ID, find_space_address
from pneumonia_hf.imaging.phantom import Opacity, simulate
from pneumonia_hf.inference.predictor import Prediction, Predictor
from pneumonia_hf.labels import LABELS
from pneumonia_hf.models.model_folder import DEFAULT_MODEL

TOLERANCE = 1e-3  # of a probability, between machines
SECONDS = 120.0  # a Space that sleeps wakes up in the meantime


def check_space(
    space: str, model: str | None = None, positive_label: str | Sequence[str] = LABELS[1]
) -> list[str]:
    """Return in sentences what a running app answers unlike its model; nothing if all is right.

    It is asked about a simulated patient, with and without an opacity, and an image without
    content, which no model may decide on.

    Args:
        space: `owner/name` of a Space, or the address of an app.
        model: folder or Hub id; by default what the app says it serves, at that commit.
        positive_label: the model's class of images with pneumonia, as of `Predictor`.

    Raises:
        UserError: it does not run, or does not answer; the model is unknown here.
    """
    from gradio_client import Client, handle_file

    address = space if space.startswith(ADDRESSES) else find_space_address(space)
    client, faults = None, []
    try:
        context, limit = ssl.create_default_context(), {"timeout": SECONDS}
        # The saved token goes to Spaces alone.
        token = False if space.startswith(ADDRESSES) else None
        client = Client(address, token, verbose=False, ssl_verify=context, httpx_kwargs=limit)
        served = client.predict(api_name="/model_info")
        model = model or name_served(served["model"], served.get("commit"))
        predictor = Predictor.from_pretrained(model, positive_label=positive_label)
        for name, image in draw_images().items():
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "image.png"
                image.save(file)
                found, _ = client.predict(image=handle_file(file), api_name="/predict")
            if fault := compare(found, predictor.predict(image)):
                faults.append(f"{name}: {fault}")
    except UserError:
        raise
    except Exception as error:  # of httpx, gradio_client, and of answers in another form
        reason = f"{address} does not answer as this app ({type(error).__name__})."
        raise HubError(reason) from error
    finally:
        if client:
            client.close()
    return faults


def draw_images() -> dict[str, Image.Image]:
    """Return what the app is asked about."""
    return {
        "a patient without an opacity": simulate()[0],
        "a patient with an opacity": simulate([Opacity((0.3, 0.35), 80)])[0],
        "a blank image": Image.new("L", (256, 256), 128),
    }


def name_served(text: str, commit: str | None) -> str | Path:
    """Return the model that `/model_info` names, `owner/name@revision (...)` or the default.

    It is named at its commit, as a branch may have moved since the app started. Earlier versions
    of the app do not say which that is.

    Raises:
        ModelError: it is another folder of that machine.
    """
    if text == DEFAULT_MODEL.name:
        return DEFAULT_MODEL
    name = text.partition(" ")[0]
    if "/" not in name or not HUB_ID.match(name.partition("@")[0]):
        raise ModelError(f"The app serves {text}, which is not of the Hub; name it as --model.")
    return f"{name.partition('@')[0]}@{commit}" if commit else name


def compare(found: dict[str, Any], expected: Prediction) -> str | None:
    """Return how an answer differs from what is expected, and None if it does not."""
    for name in ("decision", "label", "probability", "threshold"):
        one, other = found[name], getattr(expected, name)
        numbers = isinstance(one, float) and isinstance(other, float)
        if not (math.isclose(one, other, abs_tol=TOLERANCE) if numbers else one == other):
            return f"the {name} is {one} and should be {other}."
    return None
