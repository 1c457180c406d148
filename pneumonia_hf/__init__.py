"""Find pneumonia in chest X-rays, and tell how far the answer is to be believed.

Research software, not a medical device.
"""

from importlib import import_module

__version__ = "0.4.0"
__all__ = ["Prediction", "Predictor", "XrayError", "__version__", "read_xray"]

_PLACES = {
    "Prediction": "pneumonia_hf.predictor",
    "Predictor": "pneumonia_hf.predictor",
    "XrayError": "pneumonia_hf.errors",
    "read_xray": "pneumonia_hf.xray",
}


def __getattr__(name: str):
    """Import a public name when it is first asked for, so that the import itself is quick."""
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
