"""train(): the Trainer and its arguments, from decoded parts to the best checkpoint."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForImageClassification,
    BaseImageProcessor,
    EarlyStoppingCallback,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from pneumonia_hf.audit import audit_briefly
from pneumonia_hf.augment import augment
from pneumonia_hf.backbones import fast_precision
from pneumonia_hf.cache import read_parts
from pneumonia_hf.errors import UserError
from pneumonia_hf.finishing import Recipe, finish_model, put_in_place
from pneumonia_hf.hashes import to_hex
from pneumonia_hf.hub import MODEL_FILES, read_json, write_json
from pneumonia_hf.metrics import compute_metrics, to_probability
from pneumonia_hf.preprocess import normalise
from pneumonia_hf.rows import LABELS

if TYPE_CHECKING:
    from datasets import DatasetDict
    from transformers import EvalPrediction

CHECKPOINTS = "checkpoints"  # folder of the Trainer's own, inside the output folder
RECIPE_FILE = "recipe.json"  # beside the checkpoints: what the run is made of
UNFINISHED = ".unfinished"  # where the model folder is put together


@dataclass
class XrayTrainingArguments(TrainingArguments):
    """transformers' TrainingArguments with this task's defaults, and a few of our own."""

    output_dir: str | None = field(
        default=None, metadata={"help": "Folder that becomes the finished model folder."}
    )
    per_device_train_batch_size: int = 16
    per_device_eval_batch_size: int = 32
    num_train_epochs: float = 10
    learning_rate: float = 1e-4
    weight_decay: float = 0.05
    warmup_steps: float = field(
        default=0.1, metadata={"help": "Warm-up: a number of steps, or below 1 a share of all."}
    )
    lr_scheduler_type: str = "cosine"
    max_grad_norm: float = 1.0
    eval_strategy: str = "epoch"
    save_strategy: str = "epoch"
    save_total_limit: int | None = 2
    load_best_model_at_end: bool = True
    metric_for_best_model: str | None = "auroc"
    greater_is_better: bool | None = True
    logging_steps: float = 20
    report_to: list[str] = field(
        default_factory=lambda: ["tensorboard"], metadata={"help": "Trackers, or none."}
    )
    remove_unused_columns: bool | None = False  # else the Trainer drops the pictures
    seed: int = 13
    precision: str = field(
        default="auto",
        metadata={
            "help": "fp32, bf16, fp16, or auto: the mixed precision that the hardware is fast in."
        },
    )
    class_weights: bool = field(
        default=True, metadata={"help": "Weigh the loss so that both classes count alike."}
    )
    early_stopping_patience: int = field(
        default=3, metadata={"help": "Stop after so many evaluations without a better AUROC."}
    )
    cpu_threads: int | None = field(
        default=None, metadata={"help": "Threads a process; left out, all cores are shared out."}
    )
    required_sensitivity: float | None = field(
        default=None,
        metadata={"help": "Lower the threshold until this share of pneumonias is found."},
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Replace the model that the output folder holds."}
    )
    resume: bool = field(
        default=False, metadata={"help": "Go on from the last checkpoint in the output folder."}
    )

    def __post_init__(self) -> None:
        if self.output_dir is None:
            raise UserError("Tell where the model goes: --output_dir runs/NAME.")
        if self.bf16 or self.fp16:
            raise UserError("Say it with --precision bf16 or --precision fp16.")
        for name in ("learning_rate", "weight_decay"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; give 0 or more.")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed is {self.seed}; give a whole number from 0 to 4294967295.")
        if self.cpu_threads is not None and self.cpu_threads < 1:
            raise UserError(f"cpu_threads is {self.cpu_threads}; give 1 or more.")
        if self.required_sensitivity is not None and not 0 < self.required_sensitivity <= 1:
            raise UserError(
                f"required_sensitivity is {self.required_sensitivity}; give a share in 0..1."
            )
        if self.precision not in PRECISIONS:
            raise UserError(
                f"Unknown precision {self.precision!r}; choose from {sorted(PRECISIONS)}."
            )
        if not torch.accelerator.is_available():
            self.use_cpu = True  # bf16 is refused on a CPU that was not asked for
            self.dataloader_pin_memory = False
        if self.disable_tqdm is None:
            self.disable_tqdm = False  # quiet logs would take the progress bar with them
        precision = fast_precision() if self.precision == "auto" else self.precision
        self.bf16, self.fp16 = precision == "bf16", precision == "fp16"
        super().__post_init__()
        # accelerate launch leaves one thread to a process, which wastes the other cores.
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        torch.set_num_threads(self.cpu_threads or max(1, _cores() // processes))


PRECISIONS = {"auto", "fp32", "bf16", "fp16"}


def _cores() -> int:
    """Return how many cores this process may use."""
    able = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    return len(able(0)) if able else os.cpu_count() or 1


def check_output_folder(arguments: XrayTrainingArguments) -> None:
    """Raise a UserError if training into `arguments.output_dir` would destroy something."""
    folder = Path(arguments.output_dir)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; --output_dir takes a folder.")
    if arguments.overwrite and arguments.resume:
        raise UserError("--resume goes on with a run and --overwrite replaces it; choose one.")
    if arguments.overwrite:
        return
    held = sorted(name for name in MODEL_FILES if (folder / name).exists())
    # A kill while the folder was being made leaves weights without their config: no model yet.
    torn = "config.json" not in held and "model.safetensors" in held
    if held and not (torn and arguments.resume):
        what = "a finished model" if "model.safetensors" in held else " and ".join(held)
        raise UserError(
            f"{folder} holds {what}; choose another --output_dir, "
            f"or give --overwrite to replace it."
        )
    begun = last_whole_checkpoint(folder / CHECKPOINTS)
    if begun and not arguments.resume:
        raise UserError(
            f"{folder} holds an unfinished run; give --resume to go on with it, "
            f"or --overwrite to begin anew."
        )
    if arguments.resume and not begun:
        raise UserError(f"{folder} holds no checkpoint to go on from; leave --resume out.")


def last_whole_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint in `folder` that was written to its end, or None.

    The Trainer writes trainer_state.json last: a checkpoint without it was cut off, by a kill or
    a full disk, and is passed over.
    """
    steps = {
        int(path.name.removeprefix("checkpoint-")): path
        for path in folder.glob("checkpoint-*")
        if path.name.removeprefix("checkpoint-").isdigit() and _is_whole(path)
    }
    return steps[max(steps)] if steps else None


def _is_whole(checkpoint: Path) -> bool:
    try:
        return bool(read_json(checkpoint / "trainer_state.json", otherwise=None))
    except UserError:
        return False


def train(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    data: DatasetDict,
    recipe: Recipe,
    arguments: XrayTrainingArguments,
) -> Path:
    """Fine-tune `model` and return the folder of the finished one.

    The checkpoint with the best validation AUROC is calibrated, given its threshold and saved in
    `arguments.output_dir`; the Trainer's checkpoints stay in `checkpoints/` inside it. The test
    part is not scored.

    Args:
        model, processor: as `build_model` returns them.
        data: as `load_xrays` returns it.
        recipe: what is written into the run manifest; its `augment` is used.
        arguments: the Trainer's; `output_dir` is the folder to make.

    Raises:
        UserError: a class without readable pictures, an output folder that holds something,
            a loss of NaN.
    """
    check_output_folder(arguments)
    folder = Path(arguments.output_dir)
    started = time.monotonic()
    arguments.output_dir = str(folder / CHECKPOINTS)
    unfinished = folder / UNFINISHED
    if arguments.process_index == 0:
        shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
        if arguments.overwrite:
            # The old model stays until the new one is finished; its checkpoints cannot.
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    try:
        (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made ({error.strerror}); check --output_dir.") from (
            error
        )
    config = recipe.data
    data, parts = read_parts(data, processor, config.cache_dir, config.strict)
    if arguments.process_index == 0:
        print(audit_briefly(data, parts), flush=True)
    hashes = {name: to_hex(part.hashes) for name, part in parts.items()}
    _check_same_run(folder / CHECKPOINTS / RECIPE_FILE, recipe, hashes, arguments)
    try:
        trainer = XrayTrainer(
            model=model,
            args=arguments,
            processing_class=processor,
            train_dataset=parts["train"],
            eval_dataset=parts["validation"],
            data_collator=_take_batch,
            recipe=recipe,
            compute_loss_func=ClassWeightedLoss(parts["train"].labels, arguments),
            compute_metrics=_compute_trainer_metrics,
            callbacks=_callbacks(arguments),
        )
    except (ImportError, RuntimeError, ValueError) as error:
        # Trackers and optimisers that are not installed, and arguments that exclude each other.
        reason = " ".join(str(error).split())
        raise UserError(f"The Trainer refuses these arguments: {reason}") from error
    checkpoint = last_whole_checkpoint(folder / CHECKPOINTS) if arguments.resume else None
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    try:
        trainer.save_model(str(unfinished))  # every process takes part where weights are sharded
        if trainer.is_world_process_zero():
            finish_model(unfinished, data, recipe, arguments, hashes, _progress(trainer, started))
            put_in_place(unfinished, folder)
    finally:
        if trainer.is_world_process_zero():
            shutil.rmtree(unfinished, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    return folder


def _take_batch(batch: dict[str, Tensor] | list[dict[str, Any]]) -> dict[str, Tensor]:
    """Return a batch as it came: XrayPixels gives whole ones."""
    return batch if isinstance(batch, dict) else default_data_collator(batch)


class XrayTrainer(Trainer):
    """The Trainer, fed with uint8 pixels, and exact about the weights that it loads."""

    def __init__(self, *args, recipe: Recipe, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.recipe = recipe
        self.frozen_norms = [
            module
            for module in self.model.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            and not any(parameter.requires_grad for parameter in module.parameters())
        ]

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Augment (in training) and normalise the batch, on the device that it now is on."""
        inputs = super()._prepare_inputs(inputs)
        pixels = inputs["pixel_values"]
        if self.model.training:
            for norm in self.frozen_norms:
                norm.eval()  # else frozen layers' running statistics would still move
            pixels = augment(pixels, self.recipe.augment)
        pixel_values = normalise(pixels, self.processing_class)
        if self.recipe.model.channels_last:
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        return inputs | {"pixel_values": pixel_values}

    # save_pretrained writes older key names than the live ViT, DeiT, Swin and DINOv2 modules
    # have, and the Trainer loads them non-strictly: most tensors would silently stay as they are.
    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            _load_exactly(self.model, self.state.best_model_checkpoint)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            _load_exactly(model or self.model, resume_from_checkpoint)


def _load_exactly(model: nn.Module, checkpoint: str) -> None:
    module = model.module if hasattr(model, "module") else model  # DDP wraps it
    saved = AutoModelForImageClassification.from_pretrained(checkpoint, dtype=torch.float32)
    module.load_state_dict(saved.state_dict(), strict=True)


class ClassWeightedLoss:
    """Cross-entropy in which both classes weigh alike, however many pictures each has."""

    def __init__(self, labels: np.ndarray, arguments: XrayTrainingArguments) -> None:
        counts = np.bincount(labels, minlength=len(LABELS))
        weights = len(labels) / (len(LABELS) * counts)
        self.weights = torch.tensor(
            weights if arguments.class_weights else np.ones(len(LABELS)), dtype=torch.float32
        )
        self.label_smoothing = arguments.label_smoothing_factor

    def __call__(
        self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        losses = nn.functional.cross_entropy(
            outputs.logits.float(),
            labels,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )
        losses = losses * self.weights.to(labels.device)[labels]
        # Divided by the pictures of the whole step, so that accumulated steps equal a large one.
        return losses.sum() / (
            num_items_in_batch if num_items_in_batch is not None else len(labels)
        )


def _callbacks(arguments: XrayTrainingArguments) -> list:
    stops_early = arguments.load_best_model_at_end and arguments.early_stopping_patience > 0
    return [EarlyStoppingCallback(arguments.early_stopping_patience)] if stops_early else []


def _compute_trainer_metrics(prediction: EvalPrediction) -> dict[str, float]:
    logits = prediction.predictions.astype(np.float64)
    if not np.isfinite(logits).all():
        raise UserError(
            "Training has diverged: the network puts out NaN; "
            "lower --learning_rate, or set --precision fp32."
        )
    return compute_metrics(
        prediction.label_ids, to_probability(logits[:, 1] - logits[:, 0]), threshold=0.5
    )


def _progress(trainer: XrayTrainer, started: float) -> dict[str, Any]:
    state = trainer.state
    best = state.best_model_checkpoint
    return {
        "epochs_run": state.epoch,
        "steps_run": state.global_step,
        "best_checkpoint": Path(best).name if best else None,
        "best_validation_auroc": state.best_metric,
        "seconds": round(time.monotonic() - started),
        "history": [entry for entry in state.log_history if "eval_auroc" in entry],
    }


def _check_same_run(
    path: Path,
    recipe: Recipe,
    hashes: dict[str, list[str]],
    arguments: XrayTrainingArguments,
) -> None:
    """Keep what a run is made of beside its checkpoints; raise if a resumed one differs."""
    made_of = asdict(recipe.model) | asdict(recipe.augment)
    for name, of_part in hashes.items():
        made_of[f"{name} pictures"] = hashlib.sha256(" ".join(of_part).encode()).hexdigest()
    if arguments.resume:
        before = read_json(path, otherwise=made_of)
        different = [name for name in made_of if before.get(name) != made_of[name]]
        if different:
            raise UserError(
                f"The run in {path.parent.parent} was begun with other {', '.join(different)}; "
                f"resume it with the command that began it, or give --overwrite to begin anew."
            )
    elif arguments.process_index == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, made_of)
