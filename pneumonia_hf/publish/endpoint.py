"""EndpointHandler: a pushed model as an Inference Endpoint, by the handler.py in its repository."""

from __future__ import annotations

import base64
from typing import Any

from PIL import Image

from pneumonia_hf.demo.limits import Limits
from pneumonia_hf.errors import XrayError
from pneumonia_hf.imaging.read import open_xray
from pneumonia_hf.inference.predictor import Predictor

# What it imports, of what the package declares.
ENDPOINT_NEEDS = frozenset(
    "huggingface_hub joblib numpy pillow pydicom python-gdcm safetensors scipy timm torch "
    "torchvision transformers".split()
)
TAKES = "give `inputs` as {'file': the bytes of an image or DICOM file in base64}."


class EndpointHandler:
    """The decision on an X-ray, with the numbers of the app's /predict."""

    def __init__(self, path: str = ".") -> None:
        """Load the model in the repository that lies at `path`."""
        self.predictor = Predictor.from_pretrained(path)
        self.limits = Limits.from_environment()

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of a `Prediction` for `data["inputs"]`.

        The endpoint itself decodes an upload of type image/* into an image of 8-bit RGB, and in
        some versions text too. Only `{"file": base64}` brings DICOM and 16-bit files unchanged.

        Raises:
            XrayError: the input is no image that can be read; the endpoint answers with status
                400 and this sentence.
        """
        inputs = data.get("inputs")
        inputs = inputs.get("file") if isinstance(inputs, dict) else inputs
        if isinstance(inputs, str):
            try:
                coded = "".join(inputs.rpartition(",")[2].split())  # data:..., and lines of 76
                inputs = base64.b64decode(coded, validate=True)
            except ValueError as error:
                raise XrayError(f"The text is no base64; {TAKES}") from error
        if isinstance(inputs, bytes):
            if len(inputs) > self.limits.upload_mb * 10**6:
                raise XrayError(f"The image has more than {self.limits.upload_mb} MB.")
            inputs = open_xray(inputs, max_pixels=self.limits.megapixels * 10**6)
        elif not isinstance(inputs, Image.Image):
            raise XrayError(f"There is no image; {TAKES}")
        return self.predictor.predict(inputs).to_dict()
