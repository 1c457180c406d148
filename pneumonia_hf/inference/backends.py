"""BACKENDS: what computes the scores of a network; all give the same probabilities."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

import numpy as np

from pneumonia_hf.errors import UserError
from pneumonia_hf.inference.gate import pool_features
from pneumonia_hf.models.backbones import backbone_of

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

Backend = Literal["torch", "onnx", "openvino", "auto"]
# The logits, float [N, C], and the features of the gate's layer, float [N, F], or None without one.
Scorer = Callable[["torch.Tensor"], tuple[np.ndarray, np.ndarray | None]]
TOLERANCE = 1e-4  # between the probabilities of two backends


def make_scorer(
    model: PreTrainedModel, images: torch.Tensor, layer: str | None, backend: Backend
) -> Scorer:
    """Return what scores `pixel_values`, float32 [N, 3, H, W], for any N.

    Args:
        model: in evaluation mode; it stays as it is.
        images: two or more `pixel_values`, on which backends are compared and timed.
        layer: dotted name of the module whose output the input gate describes, if any.
        backend: of BACKENDS; `auto` takes the quickest of those that are installed.

    Raises:
        UserError: an unknown backend; a missing package; a backend other than torch on an
            accelerator; a backend whose probabilities differ by more than TOLERANCE.
    """
    if backend == "auto":
        return _choose_scorer(model, images, layer)
    if backend not in BACKENDS:
        raise UserError(f"The backend {backend!r} is unknown; choose from {[*BACKENDS, 'auto']}.")
    missing = [name for name in NEEDED[backend] if find_spec(name) is None]
    if missing:
        raise UserError(
            f"The backend {backend} needs more packages: pip install {' '.join(missing)}."
        )
    if backend != "torch" and model.device.type != "cpu":
        raise UserError(
            f"The backend {backend} computes on the CPU; leave it out on an accelerator."
        )
    scorer = BACKENDS[backend](model, images, layer)
    if backend != "torch":
        _check_equal(scorer, BACKENDS["torch"](model, images, layer), images, backend)
    return scorer


def _choose_scorer(model: PreTrainedModel, images: torch.Tensor, layer: str | None) -> Scorer:
    torch_scorer = BACKENDS["torch"](model, images, layer)
    if model.device.type != "cpu":
        return torch_scorer
    found = {"torch": torch_scorer}
    for name in ("openvino", "onnx"):
        if all(find_spec(one) for one in NEEDED[name]):
            found[name] = make_scorer(model, images, layer, name)
            break
    times = {name: min(_time(scorer, images) for _ in range(3)) for name, scorer in found.items()}
    return found[min(times, key=times.get)]


def _time(scorer: Scorer, images: torch.Tensor) -> float:
    started = time.perf_counter()
    scorer(images)
    return time.perf_counter() - started


def _check_equal(scorer: Scorer, reference: Scorer, images: torch.Tensor, name: str) -> None:
    from scipy.special import softmax

    found, expected = (softmax(one(images)[0], axis=1) for one in (scorer, reference))
    difference = float(np.abs(found - expected).max())
    if not difference <= TOLERANCE:  # NaN differs too
        raise UserError(
            f"The backend {name} differs by {difference:.2g} in its probabilities, more than "
            f"{TOLERANCE:g}; use the backend torch."
        )


def _make_outputs(model: nn.Module, layer: str | None) -> nn.Module:
    """Return a module: pixel_values -> logits, and the features of `layer` if it is given."""
    import torch

    class Outputs(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
            if layer is None:
                return (self.model(pixel_values=pixel_values).logits,)
            seen = []
            hook = self.model.get_submodule(layer).register_forward_hook(
                lambda module, inputs, output: seen.append(pool_features(output))
            )
            try:
                logits = self.model(pixel_values=pixel_values).logits
            finally:
                hook.remove()
            return logits, seen[0]

    return Outputs().eval()


def _score_by_torch(model: PreTrainedModel, images: torch.Tensor, layer: str | None) -> Scorer:
    """Score by PyTorch: batch norms folded into convolutions, channels last where that helps."""
    import torch

    network = fold_batch_norms(model, images)
    layout = torch.contiguous_format
    if _is_convolutional(model):
        layout = torch.channels_last
        network = network.to(memory_format=layout)
    outputs = _make_outputs(network, layer)

    def score(pixel_values: torch.Tensor) -> tuple[np.ndarray, np.ndarray | None]:
        with torch.inference_mode():
            found = outputs(pixel_values.contiguous(memory_format=layout))
        logits, *features = (one.float().cpu().numpy() for one in found)
        return logits, features[0] if features else None

    return score


def _is_convolutional(model: PreTrainedModel) -> bool:
    try:
        return backbone_of(model).channels_last
    except UserError:  # an unknown family
        return False


def fold_batch_norms(model: PreTrainedModel, images: torch.Tensor) -> PreTrainedModel:
    """Return a copy of a model whose batch norms are part of the convolutions before them.

    They are found by running the model on `images`: a batch norm whose input is the output of a
    convolution. The model itself is returned if it has none, or if the copy's logits differ by
    more than 1e-3, because something else reads what a convolution returns.
    """
    import copy

    import torch
    from torch import nn

    if not any(isinstance(one, nn.BatchNorm2d) for one in model.modules()):
        return model
    original, model = model, copy.deepcopy(model)
    made: dict[int, tuple[nn.Module, torch.Tensor]] = {}  # the tensor is kept, and so is its id
    pairs: list[tuple[nn.Module, nn.Module]] = []

    def note_output(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        made[id(output)] = (module, output)

    def note_input(module: nn.Module, inputs: tuple) -> None:
        if id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])][0], module))

    hooks = [
        one.register_forward_hook(note_output)
        if isinstance(one, nn.Conv2d)
        else one.register_forward_pre_hook(note_input)
        for one in model.modules()
        if isinstance(one, nn.Conv2d | nn.BatchNorm2d)
    ]
    try:
        with torch.inference_mode():
            expected = model(pixel_values=images).logits
    finally:
        for hook in hooks:
            hook.remove()
    names = {module: name for name, module in model.named_modules()}
    for convolution, norm in pairs:
        fused = nn.utils.fusion.fuse_conv_bn_eval(convolution, norm)
        model.set_submodule(names[convolution], fused)
        # timm's batch norms hold what follows them.
        rest = [getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)]
        model.set_submodule(names[norm], nn.Sequential(*rest))
    with torch.inference_mode():
        difference = (model(pixel_values=images).logits - expected).abs().max()
    return model if difference <= 1e-3 else original


def _export(model: PreTrainedModel, images: torch.Tensor, layer: str | None) -> bytes:
    """Return the model as an ONNX file, for batches of any size."""
    import copy
    import warnings

    import torch

    network = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # deprecations inside the exporter
        try:
            program = torch.onnx.export(
                _make_outputs(network, layer),
                (images[:2],),
                dynamo=True,
                verbose=False,
                input_names=["pixel_values"],
                dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch", min=1)}},
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"This network cannot be exported ({reason}); use the backend torch."
            ) from error
    return program.model_proto.SerializeToString()


def _score_by_onnx(model: PreTrainedModel, images: torch.Tensor, layer: str | None) -> Scorer:
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        _export(model, images, layer), options, providers=["CPUExecutionProvider"]
    )

    def score(pixel_values: torch.Tensor) -> tuple[np.ndarray, np.ndarray | None]:
        logits, *features = session.run(None, {"pixel_values": pixel_values.numpy()})
        return logits, features[0] if features else None

    return score


def _score_by_openvino(model: PreTrainedModel, images: torch.Tensor, layer: str | None) -> Scorer:
    import openvino
    import torch

    core = openvino.Core()
    settings = {
        # Its default precision on CPUs with bf16 differs by 2e-3 in probability.
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(core.read_model(_export(model, images, layer)), "CPU", settings)

    def score(pixel_values: torch.Tensor) -> tuple[np.ndarray, np.ndarray | None]:
        found = compiled(pixel_values.numpy())
        logits, *features = (np.array(found[at]) for at in range(len(compiled.outputs)))
        return logits, features[0] if features else None

    return score


BACKENDS: dict[str, Callable[[PreTrainedModel, torch.Tensor, str | None], Scorer]] = {
    "torch": _score_by_torch,
    "onnx": _score_by_onnx,
    "openvino": _score_by_openvino,
}
NEEDED = {
    "torch": (),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
}
