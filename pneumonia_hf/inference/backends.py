"""BACKENDS: what computes the scores of a network; all but int8 give the same probabilities."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from logging import LogRecord
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pneumonia_hf.errors import UserError
from pneumonia_hf.inference.gate import pool_features
from pneumonia_hf.models.backbones import backbone_of

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

Backend = Literal["torch", "onnx", "openvino", "auto", "int8"]
# The logits, float [N, C], and the features of the gate's layer, float [N, F], or None without one.
Compute = Callable[["torch.Tensor"], tuple[np.ndarray, np.ndarray | None]]
TOLERANCE = 1e-4  # between the probabilities of two backends


@dataclass(frozen=True)
class Scorer:
    """What scores `pixel_values`, float32 [N, 3, H, W], for any N."""

    compute: Compute  # on all cores, for one caller at a time
    alone: Compute | None = None  # on one core, for several threads at once; None: not possible

    def __call__(self, pixel_values: torch.Tensor) -> tuple[np.ndarray, np.ndarray | None]:
        """Return logits and features, computed on all cores."""
        return self.compute(pixel_values)


def make_scorer(
    model: PreTrainedModel,
    images: torch.Tensor,
    layer: str | None,
    backend: Backend,
    ranges: Path | None = None,
) -> Scorer:
    """Return what scores images by a backend.

    Args:
        model: in evaluation mode; it stays as it is.
        images: two or more `pixel_values`, on which backends are compared and timed.
        layer: dotted name of the module whose output the input gate describes, if any.
        backend: of BACKENDS; `auto` takes the quickest of those that are installed, but never
            int8, whose probabilities differ.
        ranges: for int8, the file that `measure_ranges` wrote for this model.

    Raises:
        UserError: an unknown backend; a missing package; a backend other than torch on an
            accelerator; int8 without its file; a backend other than int8 whose probabilities
            differ by more than TOLERANCE.
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
    if backend == "int8":
        return _score_by_int8(model, images, layer, ranges)
    scorer = BACKENDS[backend](model, images, layer)
    if backend != "torch":
        _check_equal(scorer, BACKENDS["torch"](model, images, layer), images, backend)
    return scorer


def _choose_scorer(model: PreTrainedModel, images: torch.Tensor, layer: str | None) -> Scorer:
    quickest = best = None
    for name in ("torch", "onnx", "openvino"):
        if name != "torch" and model.device.type != "cpu":
            break
        if all(find_spec(one) for one in NEEDED[name]):
            scorer = make_scorer(model, images, layer, name)
            seconds = min(_time(scorer, images) for _ in range(3))
            if best is None or seconds < best:
                quickest, best = scorer, seconds
    return quickest


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

    return Scorer(score)


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
    return _run_onnx(_export(model, images, layer))


def _run_onnx(content: bytes) -> Scorer:
    import torch

    return Scorer(_open_session(content, torch.get_num_threads()), _open_session(content, 1))


def _open_session(content: bytes, threads: int) -> Compute:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that wait in a loop would take the cores from the preprocessing.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def score(pixel_values: torch.Tensor) -> tuple[np.ndarray, np.ndarray | None]:
        logits, *features = session.run(None, {"pixel_values": pixel_values.numpy()})
        return logits, features[0] if features else None

    return score


def _score_by_openvino(model: PreTrainedModel, images: torch.Tensor, layer: str | None) -> Scorer:
    import openvino
    import torch

    core = openvino.Core()
    content = core.read_model(_export(model, images, layer))
    threads = torch.get_num_threads()
    settings = {
        # Its default precision on CPUs with bf16 differs by 2e-3 in probability.
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # two networks would be pinned to the same core
    }

    def compile_model(**more: Any) -> Compute:
        compiled = core.compile_model(content, "CPU", settings | more)

        def score(pixel_values: torch.Tensor) -> tuple[np.ndarray, np.ndarray | None]:
            # A request of its own: the model's own one is for one thread at a time.
            found = compiled.create_infer_request().infer(pixel_values.numpy())
            logits, *features = (np.array(found[at]) for at in range(len(compiled.outputs)))
            return logits, features[0] if features else None

        return score

    return Scorer(
        compile_model(PERFORMANCE_HINT="LATENCY"),
        compile_model(PERFORMANCE_HINT="THROUGHPUT", NUM_STREAMS=threads),
    )


def measure_ranges(
    model: PreTrainedModel, batches: Iterable[torch.Tensor], layer: str | None, path: Path
) -> None:
    """Write the smallest and largest value of each activation, which int8 needs, to a new file.

    Args:
        model: on the CPU, in evaluation mode.
        batches: `pixel_values` of images of every kind that will be scored; two or more each.
        layer: as of `make_scorer`.
        path: of the JSON file, in the format of onnxruntime.
    """
    batches = iter(batches)
    first = next(batches)

    class Reader:
        def __init__(self) -> None:
            self.rest = chain([first], batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.rest, None)
            return None if batch is None else {"pixel_values": batch.numpy()}

    path.unlink(missing_ok=True)  # or it would be read
    _quantize(_export(model, first, layer), path, Reader())


def _score_by_int8(
    model: PreTrainedModel, images: torch.Tensor, layer: str | None, ranges: Path | None
) -> Scorer:
    """Score by integers of 8 bits, of the weights by channel and of the activations."""
    if ranges is None or not ranges.is_file():
        raise UserError(
            "The backend int8 needs the ranges of this model's activations; measure them with "
            "train_scripts/quantize.py."
        )
    try:
        return _run_onnx(_quantize(_export(model, images, layer), ranges))
    except UserError:
        raise
    except Exception as error:  # onnxruntime raises ValueError, KeyError and its own
        raise UserError(
            f"{ranges.name} does not belong to this model; write it again with "
            f"train_scripts/quantize.py."
        ) from error


def _quantize(content: bytes, ranges: Path, reader: Any = None) -> bytes:
    """Return an ONNX model with 8-bit integers; with a reader, `ranges` is measured and written."""
    import logging
    import tempfile

    import onnx
    from onnxruntime.quantization import QuantType, quantize_static

    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "int8.onnx"
        logging.root.addFilter(_is_not_of_onnxruntime)
        try:
            quantize_static(
                onnx.load_from_string(content),
                output,
                reader,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibration_cache_path=ranges,
            )
        finally:
            logging.root.removeFilter(_is_not_of_onnxruntime)
        return output.read_bytes()


def _is_not_of_onnxruntime(record: LogRecord) -> bool:
    """Return False for onnxruntime's advice on optimisations, which gain nothing here.

    It logs by the root logger, to which nobody else's messages go directly.
    """
    return "onnxruntime" not in record.pathname


BACKENDS: dict[str, Callable[..., Scorer]] = {
    "torch": _score_by_torch,
    "onnx": _score_by_onnx,
    "openvino": _score_by_openvino,
    "int8": _score_by_int8,
}
NEEDED = {
    "torch": (),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "int8": ("onnx", "onnxscript", "onnxruntime"),
}
