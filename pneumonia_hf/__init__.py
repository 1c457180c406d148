"""Find pneumonia in chest X-rays, and measure how far the answer can be trusted.

Research software, not a medical device.
"""

from importlib import import_module

__version__ = "0.6.0"

# The public names and their modules; each is imported when it is first used, so that importing
# the package is quick.
_MODULES = {
    "AttributionMap": "inference.attribution",
    "DataConfig": "data.load",
    "DataError": "errors",
    "EvaluationConfig": "evaluation.context",
    "HubError": "errors",
    "ModelError": "errors",
    "Prediction": "inference.predictor",
    "Predictor": "inference.predictor",
    "SettingError": "errors",
    "UserError": "errors",
    "Xray": "imaging.xray",
    "XrayError": "errors",
    "attribute": "inference.attribution",
    "audit_sources": "audit.run",
    "build_demo": "demo.app",
    "evaluate_predictor": "evaluation.evaluate",
    "export_onnx": "inference.onnx_export",
    "load_xrays": "data.load",
    "open_xray": "imaging.read",
    "push_model": "publish.push",
    "read_xray": "imaging.read",
    "run_recipe": "training.train",
    "train": "training.train",
}

__all__ = [*_MODULES, "__version__"]


def __getattr__(name: str):
    """Import a public name on first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"pneumonia_hf.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
