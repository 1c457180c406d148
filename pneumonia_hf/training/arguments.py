"""The Trainer's arguments with this task's defaults, and those that transformers does not have."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation.metrics import METRICS
from pneumonia_hf.training.phases import read_phases

PRECISIONS = {"auto", "fp32", "bf16", "fp16"}
IMBALANCES = {"weights", "sampler", "focal", "none"}
# By what the best checkpoint may be chosen, and whether more of it is better.
CRITERIA = {name: metric.greater_is_better for name, metric in METRICS.items()} | {"loss": False}
PLATEAU = "reduce_lr_on_plateau"
# transformers' own arguments that would break what this project promises, and what to do instead.
REFUSED = {
    "prediction_loss_only": "validation needs the predictions",
    "label_names": "the labels are known",
    "resume_from_checkpoint": "use --resume",
    "push_to_hub": "use push_to_hub.py when the model is finished",
    "save_only_model": "such a checkpoint cannot be resumed",
    "ignore_data_skip": "a resumed run would see other images",
    "enable_jit_checkpoint": "SIGTERM saves a checkpoint in any case",
    "batch_eval_metrics": "validation is scored as a whole",
    "remove_unused_columns": "it would remove the images",
    "use_liger_kernel": "it is for language models",
    "neftune_noise_alpha": "it is for language models",
    "deepspeed": "use FSDP, train_scripts/accelerate/fsdp.yaml",
}


@dataclass
class XrayTrainingArguments(TrainingArguments):
    """transformers' TrainingArguments with this task's defaults, and a few of our own."""

    output_dir: str | None = field(
        default=None, metadata={"help": "Folder that becomes the saved model folder."}
    )
    per_device_train_batch_size: int = 16
    per_device_eval_batch_size: int = 32
    num_train_epochs: float = 10
    learning_rate: float = 1e-4
    weight_decay: float = 0.05
    warmup_steps: float = field(
        default=0.1, metadata={"help": "Warm-up: a number of steps, or below 1 a share of all."}
    )
    lr_scheduler_type: str = field(
        default="cosine",
        metadata={"help": f"cosine, linear, constant, {PLATEAU} or another of transformers'."},
    )
    max_grad_norm: float = 1.0
    eval_strategy: str = "epoch"
    save_strategy: str = "epoch"
    save_total_limit: int | None = 2
    load_best_model_at_end: bool = field(
        default=True, metadata={"help": "Finish with the best checkpoint, not with the last."}
    )
    metric_for_best_model: str | None = field(
        default="auroc", metadata={"help": "Validation metric to choose by: auroc, loss, ..."}
    )
    greater_is_better: bool | None = field(
        default=None, metadata={"help": "Follows from --metric_for_best_model."}
    )
    logging_steps: float = 20
    logging_nan_inf_filter: bool = False  # a NaN stops the run instead
    report_to: list[str] = field(
        default_factory=lambda: ["tensorboard"],
        metadata={"help": "Trackers: tensorboard, trackio, ...; or none."},
    )
    project: str = field(
        default="pneumonia-hf", metadata={"help": "trackio: the project that runs belong to."}
    )
    remove_unused_columns: bool | None = False  # else the Trainer drops the images
    seed: int = 13
    seeds: list[int] | None = field(
        default=None,
        metadata={"help": "Train once with each of these seeds, and make an ensemble of them."},
    )
    precision: str = field(
        default="auto",
        metadata={"help": "fp32, bf16, fp16, or auto: what a short measurement finds quickest."},
    )
    phases: list[str] | None = field(
        default=None,
        metadata={
            "help": "Staged fine-tuning, each phase PART:EPOCHS:RATE with PART head, lastN (phases "
            "of the network) or all, such as: head:1:1e-3 last2:2:1e-4 all:5:3e-5. "
            "Takes the place of num_train_epochs, learning_rate and trainable_layer_groups."
        },
    )
    layer_decay: float = field(
        default=1.0,
        metadata={"help": "Each phase of the network learns at this times the rate of the next."},
    )
    imbalance: str = field(
        default="weights",
        metadata={
            "help": "How both classes come to count alike: weights (in the loss), sampler (as many "
            "images of each), focal (weights and focal loss), none."
        },
    )
    focal_gamma: float = field(
        default=2.0, metadata={"help": "Focal loss: how much less easy images count."}
    )
    mixup: float = field(
        default=0.0, metadata={"help": "Mixup: the Beta distribution's alpha; 0 is off."}
    )
    cutmix: float = field(
        default=0.0, metadata={"help": "CutMix: the Beta distribution's alpha; 0 is off."}
    )
    ema_decay: float = field(
        default=0.0,
        metadata={
            "help": "Average the weights over the steps with this decay (0.99...); 0 is off."
        },
    )
    teacher: str | None = field(
        default=None,
        metadata={"help": "Distil this saved model, a folder or a Hub id, into the one trained."},
    )
    distil_weight: float = field(
        default=0.5, metadata={"help": "Share of the teacher's part in the loss, 0..1."}
    )
    distil_temperature: float = field(
        default=2.0, metadata={"help": "Softens what teacher and student say of an image."}
    )
    plateau_patience: int = field(
        default=1,
        metadata={"help": f"{PLATEAU}: evaluations without a better one before the rate falls."},
    )
    plateau_factor: float = field(
        default=0.3, metadata={"help": f"{PLATEAU}: what the rate is multiplied with."}
    )
    early_stopping_patience: int = field(
        default=3, metadata={"help": "Stop after so many evaluations without a better one; 0: off."}
    )
    cpu_threads: int | None = field(
        default=None, metadata={"help": "Threads a process; left out, all cores are shared out."}
    )
    required_sensitivity: float | None = field(
        default=None,
        metadata={"help": "Lower the threshold until this share of pneumonias is found."},
    )
    attribution_images: int = field(
        default=8,
        metadata={
            "help": "Validation pneumonias on which the scale of attribution maps is measured; "
            "0: none, and each map is scaled to its own maximum."
        },
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Replace the model that the output folder holds."}
    )
    resume: bool = field(
        default=False,
        metadata={"help": "Go on from the last whole checkpoint, if there is one; else begin."},
    )

    def __post_init__(self) -> None:
        if self.output_dir is None:
            raise UserError("Tell where the model goes: --output_dir runs/NAME.")
        if self.bf16 or self.fp16:
            raise UserError("Say it with --precision bf16 or --precision fp16.")
        self._check_ranges()
        self._check_choices()
        read_phases(self.phases, self.num_train_epochs, self.learning_rate)  # for its errors
        if not torch.accelerator.is_available():
            self.use_cpu = True  # bf16 is refused on a CPU that was not asked for
            self.dataloader_pin_memory = False
        if self.disable_tqdm is None:
            self.disable_tqdm = False  # quiet logs would take the progress bar with them
        self.greater_is_better = CRITERIA[self.metric_for_best_model]
        self.use_precision(self.precision)
        super().__post_init__()
        # A single process would train on all GPUs at once by nn.DataParallel, with a wrong loss.
        self._n_gpu = min(self.n_gpu, 1)
        by_steps = self.eval_strategy == self.save_strategy == IntervalStrategy.STEPS
        if self.load_best_model_at_end and by_steps and self.eval_steps != self.save_steps:
            raise UserError(
                f"The best weights are only kept where each evaluation is saved; set --save_steps "
                f"and --eval_steps alike (they are {self.save_steps:g} and {self.eval_steps:g})."
            )
        # accelerate launch leaves one thread to a process, which wastes the other cores.
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        torch.set_num_threads(self.cpu_threads or max(1, _cores() // processes))

    def _check_ranges(self) -> None:
        at_least_0 = ("learning_rate", "weight_decay", "mixup", "cutmix", "focal_gamma")
        at_least_0 += ("dataloader_num_workers", "max_grad_norm", "adam_epsilon")
        for name in (*at_least_0, "early_stopping_patience", "plateau_patience"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} is {getattr(self, name)}; give 0 or more.")
        for name in ("adam_beta1", "adam_beta2", "label_smoothing_factor", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; give 0 or more and less than 1.")
        for name in ("layer_decay", "required_sensitivity"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}; give a share in 0..1.")
        if not 0 < self.plateau_factor < 1:
            raise UserError(f"plateau_factor is {self.plateau_factor}; give a share in 0..1.")
        if not 0 < self.num_train_epochs < float("inf"):
            raise UserError(f"num_train_epochs is {self.num_train_epochs}; give more than 0.")
        sizes = ("per_device_train_batch_size", "per_device_eval_batch_size")
        for name in (*sizes, "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; give 1 or more.")
        if self.attribution_images < 0:
            raise UserError(f"attribution_images is {self.attribution_images}; give 0 or more.")
        if not 0 <= self.distil_weight <= 1:
            raise UserError(f"distil_weight is {self.distil_weight}; give a share in 0..1.")
        if not self.distil_temperature > 0:
            raise UserError(f"distil_temperature is {self.distil_temperature}; give more than 0.")
        for seed in (self.seed, *(self.seeds or [])):
            if not 0 <= seed < 2**32:
                raise UserError(f"seed is {seed}; give a whole number from 0 to 4294967295.")
        if self.seeds is not None and len(set(self.seeds)) < max(2, len(self.seeds)):
            raise UserError("seeds must be two or more different numbers; for one use --seed.")
        if self.cpu_threads is not None and self.cpu_threads < 1:
            raise UserError(f"cpu_threads is {self.cpu_threads}; give 1 or more.")

    def _check_choices(self) -> None:
        for name, reason in REFUSED.items():
            if getattr(self, name) not in (None, False):
                raise UserError(f"Leave --{name} out: {reason}.")
        if self.lr_scheduler_type == "greedy":
            raise UserError(f"Leave the greedy schedule out; {PLATEAU} does what it is for.")
        if self.imbalance == "sampler" and self.train_sampling_strategy != "random":
            raise UserError("--imbalance sampler draws the images; leave the other order out.")
        for name, choices in {
            "precision": PRECISIONS,
            "imbalance": IMBALANCES,
            "metric_for_best_model": CRITERIA,
        }.items():
            if getattr(self, name) not in choices:
                raise UserError(
                    f"Unknown {name} {getattr(self, name)!r}; choose from {sorted(choices)}."
                )
        if self.greater_is_better not in (None, CRITERIA[self.metric_for_best_model]):
            raise UserError("Leave greater_is_better out: it follows from metric_for_best_model.")
        if self.lr_scheduler_type == PLATEAU and self.eval_strategy == "no":
            raise UserError(f"{PLATEAU} needs evaluations; set --eval_strategy epoch.")
        if self.save_strategy == SaveStrategy.BEST and not self.load_best_model_at_end:
            raise UserError("save_strategy best keeps no last checkpoint; set it to epoch.")

    def use_precision(self, precision: str) -> None:
        """Set the mixed precision to `precision`: fp32, bf16 or fp16 (auto: fp32 as yet)."""
        self.bf16, self.fp16 = precision == "bf16", precision == "fp16"
        self.mixed_precision = precision if precision in ("bf16", "fp16") else "no"


def _cores() -> int:
    """Return how many cores this process may use."""
    able = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    return len(able(0)) if able else os.cpu_count() or 1
