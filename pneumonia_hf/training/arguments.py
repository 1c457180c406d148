"""XrayTrainingArguments: transformers' arguments with our defaults, and a few of our own."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from math import inf
from typing import Any, Literal, Self

import torch
from joblib import cpu_count
from transformers import TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from pneumonia_hf.cli import check_choices, flag
from pneumonia_hf.compat.transformers import use_one_gpu
from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation.perturbations import ROBUST
from pneumonia_hf.hub import check_repo_id
from pneumonia_hf.models.backbones import fast_precision
from pneumonia_hf.statistics.metrics import METRICS
from pneumonia_hf.training.phases import Phase, read_phase

# The metrics by which the best checkpoint can be chosen, and whether greater is better.
CRITERIA = {name: metric.greater_is_better for name, metric in METRICS.items()}
CRITERIA |= {"loss": False, ROBUST: True}
PLATEAU = "reduce_lr_on_plateau"
NO_LENGTH = "images have no length"
# Arguments of transformers that would break a promise of this project, or do nothing, and why.
REFUSED = {
    name: reason
    for reason, names in {
        "validation needs the predictions": "prediction_loss_only",
        "the labels are known": "label_names",
        "use --resume": "resume_from_checkpoint",
        "the saved model is pushed, once": "hub_strategy hub_always_push hub_revision",
        "log in with `hf auth login` or set HF_TOKEN": "hub_token",
        "such a checkpoint cannot be resumed": "save_only_model",
        "a resumed run would train on other images": "ignore_data_skip",
        "SIGTERM saves a checkpoint in any case": "enable_jit_checkpoint",
        "metrics need the whole validation split": "batch_eval_metrics eval_do_concat_batches",
        "it is for outputs other than tensors": "eval_use_gather_object",
        "metrics need the predictions only": "include_for_metrics",
        "metrics need the images in order": "dataloader_in_order",
        "validation computes as training does; use --precision": "fp16_full_eval bf16_full_eval",
        "it would remove the images": "remove_unused_columns",
        NO_LENGTH: "length_column_name",
        "it is for language models": "include_num_input_tokens_seen use_cache use_liger_kernel "
        "liger_kernel_config neftune_noise_alpha",
        "use accelerate launch with a file of train_scripts/accelerate": "accelerator_config "
        "parallelism_config fsdp fsdp_config",
        "use FSDP, train_scripts/accelerate/fsdp.yaml": "deepspeed",
    }.items()
    for name in names.split()
}


@dataclass
class XrayTrainingArguments(TrainingArguments):
    """TrainingArguments with defaults for this task, and further arguments."""

    output_dir: str | None = flag(None, "Folder that becomes the model folder.")
    per_device_train_batch_size: int = 16
    per_device_eval_batch_size: int = 32
    num_train_epochs: float = 10
    learning_rate: float = 1e-4
    weight_decay: float = 0.05
    warmup_steps: float = flag(0.1, "Warm-up: a number of steps, or below 1 a share of all steps.")
    lr_scheduler_type: str = flag(
        "cosine", f"cosine, linear, constant, {PLATEAU} or another of transformers'."
    )
    max_grad_norm: float = 1.0
    ddp_timeout: int = 30 * 86400  # seconds: the others wait while the main process calibrates
    eval_strategy: str = "epoch"
    save_strategy: str = "epoch"
    save_total_limit: int | None = 2
    load_best_model_at_end: bool = flag(True, "Save the best checkpoint, not the last one.")
    metric_for_best_model: Literal[*CRITERIA] = flag(
        ROBUST,
        "Validation metric that the best checkpoint is chosen by; robust_auroc: the mean "
        "AUROC of the plain images and of copies with another frame, markers and gray levels.",
    )
    greater_is_better: bool | None = flag(None, "Follows from --metric_for_best_model.")
    logging_steps: float = 20
    logging_nan_inf_filter: bool = False  # a NaN stops the run instead
    report_to: list[str] = field(
        default_factory=lambda: ["tensorboard"],
        metadata={"help": "Trackers: tensorboard, trackio, ...; or none."},
    )
    project: str = flag("pneumonia-hf", "trackio: the project of the run.")
    remove_unused_columns: bool | None = False  # else the Trainer drops the images
    seed: int = 13
    seeds: list[int] | None = flag(
        None, "Train once with each of these seeds, and make an ensemble of them."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = flag(
        "auto", "auto: bf16 where the hardware computes it, else fp32."
    )
    phases: list[str] | None = flag(
        None,
        "Training phases, each PART:EPOCHS:RATE with PART head, lastN (layer groups) "
        "or all, such as: head:1:1e-3 last2:2:1e-4 all:5:3e-5. They replace num_train_epochs, "
        "learning_rate and trainable_layer_groups.",
    )
    layer_decay: float = flag(
        1.0, "Learning rate of each layer group, relative to that of the next one."
    )
    imbalance: Literal["weights", "sampler", "focal", "none"] = flag(
        "weights",
        "How classes are balanced: weights (in the loss), sampler (as many images of each), "
        "focal (weights and focal loss), none. With several sources by a sampler, in each.",
    )
    balance: list[str] | None = flag(
        None,
        "Columns of metadata, such as view, whose values are drawn alike often in both classes of "
        "each source, by a sampler.",
    )
    box_weight: float = flag(
        0.0,
        "Weight of the loss that compares the class activation map with radiologists' boxes, the "
        "column `boxes` of metadata; 0: off.",
    )
    focal_gamma: float = flag(
        2.0, "Focal loss: the exponent that reduces the weight of easy images."
    )
    mixup: float = flag(0.0, "Mixup: alpha of the Beta distribution; 0 is off.")
    cutmix: float = flag(0.0, "CutMix: alpha of the Beta distribution; 0 is off.")
    ema_decay: float = flag(0.0, "Exponential moving average of the weights: its decay; 0 is off.")
    average_from: float = flag(
        0.0, "Equal mean of the weights from this share of each phase on; 0 is off."
    )
    teacher: str | None = flag(
        None, "Saved model to distil into the trained one: a folder or a Hub id."
    )
    teacher_positive_label: str = flag(
        "PNEUMONIA", "Name of the teacher's class of images with pneumonia."
    )
    distil_weight: float = flag(0.5, "Distillation: share of the teacher's loss, 0..1.")
    distil_temperature: float = flag(2.0, "Distillation: temperature of both networks.")
    unlabelled: list[str] | None = flag(
        None,
        "Distillation: folders of further X-rays, whose subfolders say nothing; the "
        "student learns the teacher's scores of them.",
    )
    unlabelled_share: float = flag(
        0.5, "Unlabelled images in a step, as a share of the labelled ones."
    )
    plateau_patience: int = flag(
        1, f"{PLATEAU}: evaluations without improvement before the rate falls."
    )
    plateau_factor: float = flag(0.3, f"{PLATEAU}: factor on the rate.")
    early_stopping_patience: int = flag(
        3, "Stop after this many evaluations without improvement; 0: off."
    )
    cpu_threads: int | None = flag(
        None, "Threads per process; by default all cores, divided between processes."
    )
    required_sensitivity: float | None = flag(
        None, "Lower the threshold until sensitivity is at least this."
    )
    attribution_images: int = flag(
        8,
        "Validation pneumonias on which the scale of attribution maps is measured; "
        "0: each map is scaled to its own maximum.",
    )
    overwrite: bool = flag(False, "Replace the model in the output folder.")
    resume: bool = flag(False, "Continue from the last checkpoint, if there is one.")
    bootstrap_resamples: int = flag(300, "Resamples for the intervals of validation metrics.")
    threshold_resamples: int = flag(500, "Resamples in which the threshold is chosen.")

    def __post_init__(self) -> None:
        if self.output_dir is None:
            raise UserError("--output_dir is required, such as --output_dir runs/NAME.")
        if self.bf16 or self.fp16:
            raise UserError("Use --precision bf16 or --precision fp16.")
        check_choices(self)
        self._check_ranges()
        self._check_combinations()
        self.read_phases()  # for its errors
        if not torch.accelerator.is_available():
            self.use_cpu = True  # transformers refuses bf16 on a CPU that was not asked for
            self.dataloader_pin_memory = False
        if self.disable_tqdm is None:
            self.disable_tqdm = False  # quiet logs would switch the progress bar off too
        self.greater_is_better = CRITERIA[self.metric_for_best_model]
        precision = self.computed_precision
        self.bf16, self.fp16 = precision == "bf16", precision == "fp16"
        self.mixed_precision = precision if precision in ("bf16", "fp16") else "no"
        super().__post_init__()
        use_one_gpu(self)
        by_steps = self.eval_strategy == self.save_strategy == IntervalStrategy.STEPS
        if self.load_best_model_at_end and by_steps and self.eval_steps != self.save_steps:
            raise UserError(
                f"The best weights are kept only if each evaluation is saved; set --save_steps "
                f"and --eval_steps alike (they are {self.save_steps:g} and {self.eval_steps:g})."
            )

    @property
    def computed_precision(self) -> str:
        """The precision that the run computes in: fp32, bf16 or fp16."""
        if self.precision != "auto":
            return self.precision
        return fast_precision("cpu" if self.use_cpu else None)

    @property
    def schedule_settings(self) -> dict[str, Any] | None:
        """The settings of the schedule, which the Trainer passes on to it."""
        if self.lr_scheduler_type != PLATEAU:
            return self.lr_scheduler_kwargs
        mode = "max" if self.greater_is_better else "min"
        return {"mode": mode, "factor": self.plateau_factor, "patience": self.plateau_patience}

    def read_phases(self, trainable_layer_groups: int | None = None) -> list[Phase]:
        """Return the training phases in order; where `phases` is not given, it is one.

        Raises:
            UserError: a phase that is not PART:EPOCHS:RATE; phases and `trainable_layer_groups`.
        """
        if self.phases is None:
            return [Phase(trainable_layer_groups, self.num_train_epochs, self.learning_rate)]
        if trainable_layer_groups is not None:
            raise UserError(
                "--phases and --trainable_layer_groups exclude each other; leave one out."
            )
        if not self.phases:
            raise UserError(
                "--phases is empty; leave it out, or give such as head:1:1e-3 all:5:3e-5."
            )
        return [read_phase(text) for text in self.phases]

    def with_changes(self, **changes: Any) -> Self:
        """Return a copy with other values, which are not checked again."""
        changed = copy.copy(self)
        for name, value in changes.items():
            setattr(changed, name, value)
        return changed

    def set_threads(self) -> None:
        """Set the number of threads that this process computes with."""
        # accelerate launch gives each process one thread, which leaves the other cores idle.
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        torch.set_num_threads(self.cpu_threads or max(1, cpu_count() // processes))

    def _check_ranges(self) -> None:
        for valid, wanted, names in RANGES:
            for name in names.split():
                value = getattr(self, name)
                if value is not None and not valid(value):
                    raise UserError(f"{name} is {value}; give {wanted}.")
        for seed in (self.seed, *(self.seeds or [])):
            if not 0 <= seed < 2**32:
                raise UserError(f"seed is {seed}; give a whole number from 0 to 4294967295.")
        if self.seeds is not None and len(set(self.seeds)) < max(2, len(self.seeds)):
            raise UserError("seeds must be two or more different numbers; for one use --seed.")

    def _check_combinations(self) -> None:
        for argument in fields(self):
            default = (
                argument.default
                if argument.default_factory is MISSING
                else argument.default_factory()
            )
            # An AcceleratorConfig is what the Trainer makes of None, where arguments are copied.
            off = (None, default, AcceleratorConfig(), *([] if default is True else [False]))
            if argument.name in REFUSED and getattr(self, argument.name) not in off:
                raise UserError(f"Leave --{argument.name} out: {REFUSED[argument.name]}.")
        if self.push_to_hub != bool(self.hub_model_id):
            raise UserError("--push_to_hub needs --hub_model_id owner/name, and the other way.")
        if self.push_to_hub:
            check_repo_id(self.hub_model_id)
        if self.train_sampling_strategy not in ("random", "sequential"):
            raise UserError(
                f"Leave --train_sampling_strategy {self.train_sampling_strategy} out: {NO_LENGTH}."
            )
        if self.ddp_backend and int(os.environ.get("WORLD_SIZE", 1)) < 2:
            raise UserError("--ddp_backend is for several processes; leave it out for one.")
        if self.ema_decay and self.average_from:
            raise UserError("--ema_decay and --average_from are two averages; leave one out.")
        if self.box_weight and (self.mixup or self.cutmix):
            raise UserError("--box_weight needs whole images; leave --mixup and --cutmix out.")
        if self.unlabelled and not (self.teacher and self.distil_weight):
            raise UserError("--unlabelled images have no labels: give a --teacher to score them.")
        if self.lr_scheduler_type == "greedy":
            raise UserError(f"Leave the greedy schedule out; {PLATEAU} serves the same purpose.")
        if self.imbalance == "sampler" and self.train_sampling_strategy != "random":
            raise UserError(
                "--imbalance sampler orders the images; leave --train_sampling_strategy out."
            )
        if self.greater_is_better not in (None, CRITERIA[self.metric_for_best_model]):
            raise UserError("Leave greater_is_better out: it follows from metric_for_best_model.")
        if self.lr_scheduler_type == PLATEAU and self.eval_strategy == "no":
            raise UserError(f"{PLATEAU} needs evaluations; set --eval_strategy epoch.")
        if self.save_strategy == SaveStrategy.BEST and not self.load_best_model_at_end:
            raise UserError("save_strategy best keeps no last checkpoint; set it to epoch.")


# A condition, its wording, and the arguments that it applies to.
RANGES: tuple[tuple[Callable[[float], bool], str, str], ...] = (
    (lambda value: value >= 0, "0 or more",
     "learning_rate weight_decay mixup cutmix focal_gamma dataloader_num_workers max_grad_norm "
     "adam_epsilon box_weight early_stopping_patience plateau_patience attribution_images"),
    (lambda value: 0 <= value < 1, "0 or more and less than 1",
     "adam_beta1 adam_beta2 label_smoothing_factor ema_decay average_from"),
    (lambda value: 0 < value <= 1, "a share in 0..1", "layer_decay required_sensitivity"),
    (lambda value: 0 < value <= 4, "more than 0 and at most 4", "unlabelled_share"),
    (lambda value: 0 < value < 1, "a share in 0..1", "plateau_factor"),
    (lambda value: 0 <= value <= 1, "a share in 0..1", "distil_weight"),
    (lambda value: 0 < value < inf, "more than 0", "num_train_epochs distil_temperature"),
    (lambda value: value >= 1, "1 or more",
     "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps "
     "cpu_threads bootstrap_resamples threshold_resamples"),
)  # fmt: skip
