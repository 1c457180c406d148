"""BACKENDS: what computes the scores of a network; all but int8 give the same probabilities."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from logging import LogRecord
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pneumonia_hf.errors import UserError
from pneumonia_hf.inference.gate import Layer, pool_features
from pneumonia_hf.models.backbones import backbone_of

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.onnx import ONNXProgram
    from transformers import PreTrainedModel

Backend = Literal["torch", "onnx", "openvino", "auto", "int8"]
# The logits, float [N, C], and the features of the gate's layer, float [N, F], or None without one.
Compute = Callable[["torch.Tensor"], tuple[np.ndarray, np.ndarray | None]]
TOLERANCE = 1e-4  # between the probabilities of two backends, or logits of model and ONNX file


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
    layer: Layer | None,
    backend: Backend,
    ranges: Path | None = None,
) -> Scorer:
    """Return what scores images by a backend.

    Args:
        model: in evaluation mode; it stays as it is.
        images: two or more `pixel_values`, on which backends are compared and timed.
        layer: whose output the input gate describes, if any.
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
    check_packages(f"The backend {backend}", NEEDED[backend])
    if backend != "torch" and model.device.type != "cpu":
        raise UserError(
            f"The backend {backend} computes on the CPU; leave it out on an accelerator."
        )
    if backend == "int8":
        return _score_by_int8(model, images, layer, ranges)
    scorer = BACKENDS[backend](model, images, layer)
    if backend != "torch":
        from scipy.special import softmax

        both = (scorer, BACKENDS["torch"](model, images, layer))
        probabilities = (softmax(compute(images)[0], axis=1) for compute in both)
        what = f"The probabilities of the backend {backend}"
        check_equal(*probabilities, what, "use the backend torch")
    return scorer


def check_packages(what: str, names: Sequence[str]) -> None:
    """Raise a UserError if packages are missing that `what` needs."""
    if missing := [name for name in names if find_spec(name) is None]:
        raise UserError(f"{what} needs more packages: pip install {' '.join(missing)}.")


def check_equal(
    found: np.ndarray, expected: np.ndarray, what: str, advice: str, tolerance: float = TOLERANCE
) -> None:
    """Raise a UserError if `found` differs from the model's own by more than the tolerance."""
    difference = float(np.abs(found - expected).max())
    if not difference <= tolerance:  # NaN differs too
        limit = f"{difference:.2g}, more than {tolerance:g}"
        raise UserError(f"{what} differ from the model's by {limit}; {advice}.")


def _choose_scorer(model: PreTrainedModel, images: torch.Tensor, layer: Layer | None) -> Scorer:
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


def _make_outputs(
    model: nn.Module, layer: Layer | None, class_index: int | None = None
) -> nn.Module:
    """Return a module: pixel_values -> logits, then what is asked for, as of `export_network`."""
    import torch

    class Outputs(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
            features = []
            with ExitStack() as hooks:
                if layer is not None:
                    hook = self.model.get_submodule(layer.name).register_forward_hook(
                        lambda module, inputs, output: features.append(
                            pool_features(output, layer.cells)
                        )
                    )
                    hooks.callback(hook.remove)
                logits = self.model(pixel_values=pixel_values).logits
            if class_index is None:
                return (logits, *features)
            return (logits, *features, logits.softmax(dim=1)[:, class_index])

    return Outputs().eval()


def _score_by_torch(model: PreTrainedModel, images: torch.Tensor, layer: Layer | None) -> Scorer:
    """Score by PyTorch: batch norms folded into convolutions, channels last where that helps."""
    import torch

    from pneumonia_hf.inference.folding import fold_batch_norms

    network = fold_batch_norms(model, images[:2])  # which show as much as all, in less time
    layout = torch.contiguous_format
    if is_convolutional(model):
        layout = torch.channels_last
        network = network.to(memory_format=layout)
    outputs = _make_outputs(network, layer)

    def score(pixel_values: torch.Tensor) -> tuple[np.ndarray, np.ndarray | None]:
        with torch.inference_mode():
            found = outputs(pixel_values.contiguous(memory_format=layout))
        logits, *features = (one.float().cpu().numpy() for one in found)
        return logits, features[0] if features else None

    return Scorer(score)


def is_convolutional(model: PreTrainedModel) -> bool:
    """Return whether the model computes faster with the channels last."""
    try:
        return backbone_of(model).channels_last
    except UserError:  # an unknown family
        return False


def export_network(
    model: PreTrainedModel,
    images: torch.Tensor,
    layer: Layer | None = None,
    class_index: int | None = None,
) -> ONNXProgram:
    """Return a model as an ONNX program: `pixel_values`, for batches of any size, -> logits.

    Args:
        model: on the CPU, in evaluation mode; it stays as it is.
        images: two or more `pixel_values`, to trace it with.
        layer: the features of this module are an output too, after the logits.
        class_index: the probability of this class is the last output; outputs then have names.

    Raises:
        UserError: ONNX cannot express the network.
    """
    import copy

    import torch

    network = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    # The ranges of int8 are by tensor, so other names would not fit older files.
    names = None if class_index is None else ["logits", "probability"]
    shapes = {0: torch.export.Dim("batch", min=1)}
    outputs = _make_outputs(network, layer, class_index)
    return write_program(outputs, "pixel_values", images[:2], shapes, names)


def write_program(
    module: nn.Module,
    name: str,
    example: torch.Tensor,
    shapes: dict[int, Any],
    output_names: Sequence[str] | None = None,
) -> ONNXProgram:
    """Return a module with one input, `name`, as an ONNX program; it is traced with `example`.

    `shapes` are the axes of the input that may have other lengths.

    Raises:
        UserError: ONNX cannot express the network.
    """
    import warnings

    import torch

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # deprecations inside the exporter
        try:
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                verbose=False,
                input_names=[name],
                output_names=output_names,
                dynamic_shapes=(shapes,),
            )
            for node in program.model.graph:  # paths of this machine
                node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)
            return program
        except torch.onnx.errors.OnnxExporterError as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"This network cannot be written as ONNX ({reason}); use the backend torch."
            ) from error


def _export(model: PreTrainedModel, images: torch.Tensor, layer: Layer | None) -> bytes:
    return export_network(model, images, layer).model_proto.SerializeToString()


def _score_by_onnx(model: PreTrainedModel, images: torch.Tensor, layer: Layer | None) -> Scorer:
    return _run_onnx(_export(model, images, layer))


def _run_onnx(content: bytes) -> Scorer:
    import torch

    return Scorer(open_session(content, torch.get_num_threads()), open_session(content, 1))


def open_session(content: bytes | Path, threads: int) -> Compute:
    """Return what computes the first output of an ONNX model, and its second if there is one."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that wait in a loop would take the cores from the preprocessing.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def score(pixel_values: torch.Tensor) -> tuple[np.ndarray, np.ndarray | None]:
        logits, *features = session.run(None, {name: pixel_values.numpy()})
        return logits, features[0] if features else None

    return score


def _score_by_openvino(model: PreTrainedModel, images: torch.Tensor, layer: Layer | None) -> Scorer:
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
    model: PreTrainedModel, batches: Iterable[torch.Tensor], layer: Layer | None, path: Path
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
    inputs = ({"pixel_values": batch.numpy()} for batch in chain([first], batches))
    reader = SimpleNamespace(get_next=lambda: next(inputs, None))
    path.unlink(missing_ok=True)  # or it would be read
    _quantize(_export(model, first, layer), path, reader)


def _score_by_int8(
    model: PreTrainedModel, images: torch.Tensor, layer: Layer | None, ranges: Path | None
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
