"""XrayTrainer: transformers' Trainer on uint8 pixels, with exact checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import Sampler
from transformers import AutoModelForImageClassification, Trainer, TrainerCallback

from pneumonia_hf.errors import UserError
from pneumonia_hf.imaging.preprocess import normalise
from pneumonia_hf.labels import LABELS
from pneumonia_hf.training.arguments import PLATEAU, XrayTrainingArguments
from pneumonia_hf.training.augment import augment
from pneumonia_hf.training.checkpoints import (
    AVERAGE_FILE,
    UNFINISHED,
    best_beside,
    install_checkpoint,
    remove_old,
)
from pneumonia_hf.training.distributed import is_sharded
from pneumonia_hf.training.losses import Targets

if TYPE_CHECKING:
    from pneumonia_hf.training.distillation import Teacher
    from pneumonia_hf.training.recipe import Recipe

DIVERGED = (
    "Training has diverged: the network outputs NaN; lower --learning_rate, or set "
    "--precision fp32. The last checkpoint from before that is kept."
)


class XrayTrainer(Trainer):
    """The Trainer with our augmentation, average of weights and checkpoints."""

    def __init__(
        self, *args, recipe: Recipe, rates: dict[str, float], teacher: Teacher | None = None, **kw
    ) -> None:
        """Take what Trainer takes, and

        Args:
            recipe: its `augment` and `model.channels_last` are used.
            rates: what the learning rate of each parameter is multiplied with, by name.
            teacher: a model to learn from.
        """
        super().__init__(*args, **kw)
        if is_sharded():
            self._prepare_sharding()
        self.recipe = recipe
        self.rates = rates
        self.teacher = teacher
        self.mix = _make_mix(self.args)
        self.sampler: Sampler | None = None
        self.average: AveragedModel | None = None
        self.frozen_norms = [
            module
            for module in self.model.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            and (own := list(module.parameters()))
            and not any(parameter.requires_grad for parameter in own)
        ]
        self.add_callback(_Companion(self))

    def _prepare_sharding(self) -> None:
        if not self.is_fsdp_enabled:  # accelerate says nothing, and trains unsharded
            raise UserError("FSDP needs GPUs; take another file of train_scripts/accelerate.")
        if self.args.ema_decay:
            raise UserError("--ema_decay does not work with FSDP; leave one of them out.")
        # A checkpoint has to be a model folder too: from it the run is finished.
        self.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
        # accelerate shards the patch embedding by itself, and fails within a sharded parent.
        self.model._no_split_modules = [
            name for name in self.model._no_split_modules if not name.endswith("Embeddings")
        ]

    # ---- The batch

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Augment and mix (in training) and normalise the batch, on the device that it is on."""
        inputs = super()._prepare_inputs(inputs)
        pixels = inputs["pixel_values"]
        if self.model.training:
            for norm in self.frozen_norms:
                norm.eval()  # else frozen layers' running statistics would still move
            pixels = augment(pixels, self.recipe.augment)
            if self.mix or self.teacher:
                pixels, inputs["labels"] = self._mix_and_ask(pixels, inputs["labels"])
        pixel_values = normalise(pixels, self.processing_class)
        if self.recipe.model.channels_last:
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        return inputs | {"pixel_values": pixel_values}

    def _mix_and_ask(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Targets]:
        """Return mixed pixels with the shares of their classes, and what the teacher says."""
        if self.mix:
            pixels, classes = self.mix(pixels.float(), labels)
        else:
            classes = nn.functional.one_hot(labels, len(LABELS)).float()
        return pixels, Targets(classes, self.teacher.logits(pixels) if self.teacher else None)

    def _get_train_sampler(self, train_dataset=None) -> Sampler | None:
        if self.args.imbalance == "sampler":
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            self.sampler = BalancedSampler(self.train_dataset.labels, seed)
        else:
            self.sampler = super()._get_train_sampler(train_dataset)
        return self.sampler

    def prediction_step(self, *args, **kwargs) -> tuple[None, Tensor | None, Tensor | None]:
        """Return the logits without a loss.

        The Trainer's mean over batches of a loss counts the images that pad the last batch;
        `compute_metrics` has the exact one.
        """
        _, logits, labels = super().prediction_step(*args, **kwargs)
        return None, logits, labels

    # ---- The step

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Make the Trainer's optimizer; each parameter at its own share of the rate."""
        if self.optimizer is not None or all(rate == 1 for rate in self.rates.values()):
            return super().create_optimizer(model)
        model = self.model if model is None else model
        decaying = set(self.get_decay_parameter_names(model))
        groups: dict[tuple[float, bool], list] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                rate = self.rates[name.replace("_fsdp_wrapped_module.", "")]
                groups.setdefault((rate, name in decaying), []).append(parameter)
        kind, settings = self.get_optimizer_cls_and_kwargs(self.args, model)
        self.optimizer = kind(
            [  # the head's first: the Trainer logs the rate of the first group
                {
                    "params": parameters,
                    "lr": self.args.learning_rate * rate,
                    "weight_decay": self.args.weight_decay * decays,
                }
                for (rate, decays), parameters in sorted(
                    groups.items(), key=lambda group: group[0], reverse=True
                )
            ],
            **settings,
        )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None) -> LRScheduler:
        """Make the Trainer's schedule; a plateau in the direction of the metric."""
        if self.args.lr_scheduler_type != PLATEAU:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            optimizer = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = ReduceLROnPlateau(
                getattr(optimizer, "optimizer", optimizer),
                mode="max" if self.args.greater_is_better else "min",
                factor=self.args.plateau_factor,
                patience=self.args.plateau_patience,
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, and stop where the loss is no number any more."""
        if not np.isfinite(logs.get("loss", 0.0)):
            raise UserError(DIVERGED)
        super().log(logs, start_time)

    # ---- The average of the weights

    def update_average(self) -> None:
        """Move the averaged weights towards those after this step."""
        if self.average is None:
            self.average = self._make_average()
        self.average.update_parameters(self.model)

    def _make_average(self) -> AveragedModel:
        def move(averaged: list[Tensor], live: list[Tensor], count: Tensor) -> None:
            # The decay begins low, so that the first weights are soon forgotten.
            decay = min(self.args.ema_decay, (1 + int(count)) / (10 + int(count)))
            if averaged[0].is_floating_point():
                torch._foreach_lerp_(averaged, live, 1 - decay)
            else:  # batch norm's counter
                torch._foreach_copy_(averaged, live)

        return AveragedModel(self.model, multi_avg_fn=torch.no_grad()(move), use_buffers=True)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Evaluate, with the averaged weights where there are such."""
        if self.average is None:
            return super().evaluate(*args, **kwargs)
        live, self.model = self.model, self.average.module
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self.model = live

    # ---- The checkpoint

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint in a temporary folder, rename it, and only then remove older ones."""
        folder, name = Path(self.args.output_dir), f"checkpoint-{self.state.global_step}"
        staged = folder / UNFINISHED / name
        self._refuse_nan()
        if self.args.should_save:
            shutil.rmtree(staged, ignore_errors=True)  # of a killed run
        self.accelerator.wait_for_everyone()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        self.args.output_dir = str(staged.parent)
        try:
            super()._save_checkpoint(model, trial)
            if self.average is not None and self.args.should_save:
                weights = self.average.module.state_dict()
                plain = {name: value.contiguous() for name, value in weights.items()}
                save_file(plain, staged / AVERAGE_FILE, metadata={"format": "pt"})
        except Exception:  # safetensors, torch and the system each raise their own
            if self.args.should_save:
                shutil.rmtree(staged, ignore_errors=True)  # it would fill a full disk further
            raise
        finally:
            self.args.save_total_limit, self.args.output_dir = limit, str(folder)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            install_checkpoint(folder, name)
        self.accelerator.wait_for_everyone()
        if self.args.local_process_index == 0:
            install_checkpoint(folder, name)  # on a machine with a disk of its own
        if self.state.best_model_checkpoint:
            self.state.best_model_checkpoint = str(
                folder / Path(self.state.best_model_checkpoint).name
            )
        if self.args.should_save:
            remove_old(folder, limit, self.state.best_model_checkpoint)

    def _refuse_nan(self) -> None:
        for parameter in self.model.parameters():
            if not torch.isfinite(parameter).all():
                raise UserError(DIVERGED)

    def _init_training_state(
        self, max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
    ) -> tuple[int, int]:
        begun = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if resume_from_checkpoint is not None:
            best = best_beside(Path(resume_from_checkpoint))
            self.state.best_model_checkpoint = best and str(best)
        return begun

    # save_pretrained writes older key names than the live ViT, DeiT, Swin and DINOv2 modules
    # have, and the Trainer loads them non-strictly: most tensors would silently stay as they are.
    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        model = model or self.model
        module = model.module if hasattr(model, "module") else model  # DDP wraps it
        module.load_state_dict(read_weights(Path(resume_from_checkpoint)), strict=True)
        average = Path(resume_from_checkpoint) / AVERAGE_FILE
        if average.exists():
            self.average = self._make_average()
            self.average.module.load_state_dict(load_file(average), strict=True)
            self.average.n_averaged.fill_(_step_of(resume_from_checkpoint))


def _step_of(checkpoint: str | Path) -> int:
    return int(Path(checkpoint).name.removeprefix("checkpoint-"))


def read_weights(checkpoint: Path) -> dict[str, Tensor]:
    """Return the weights of a checkpoint under the names of the live module."""
    saved = AutoModelForImageClassification.from_pretrained(checkpoint, dtype=torch.float32)
    return saved.state_dict()


def load_best(checkpoint: Path) -> nn.Module:
    """Return the model of a checkpoint, in the weights that were evaluated: the averaged ones."""
    model = AutoModelForImageClassification.from_pretrained(checkpoint, dtype=torch.float32)
    average = checkpoint / AVERAGE_FILE
    if average.exists():
        model.load_state_dict(load_file(average), strict=True)
    return model


class BalancedSampler(Sampler[int]):
    """As many images of each class, drawn with replacement; an epoch is as long as the data.

    torch's WeightedRandomSampler draws from a generator that a run cut within an epoch would
    find elsewhere; here the draws follow from seed and epoch.
    """

    def __init__(self, labels: np.ndarray, seed: int) -> None:
        """Take the labels of all images [N], and the seed."""
        self.rows = [torch.from_numpy(np.flatnonzero(labels == label)) for label in range(2)]
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Draw anew for each epoch; accelerate calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(len(rows) for rows in self.rows)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.epoch)
        of_class = torch.randint(len(self.rows), (len(self),), generator=generator)
        which = torch.rand(len(self), generator=generator)
        for label, share in zip(of_class.tolist(), which.tolist(), strict=True):
            rows = self.rows[label]
            yield int(rows[int(share * len(rows))])


class _Companion(TrainerCallback):
    """What has to happen at moments for which the Trainer has no method."""

    def __init__(self, trainer: XrayTrainer) -> None:
        self.trainer = trainer
        self.is_due = False  # a checkpoint, after the evaluation that follows

    def on_train_begin(self, args, state, control, **kwargs):
        if args.world_size > 1 and state.global_step == 0:
            # Else all processes would augment alike; a resumed run restores each one's own state.
            torch.manual_seed(args.seed + args.process_index)

    def on_optimizer_step(self, args, state, control, **kwargs):
        if args.ema_decay:
            self.trainer.update_average()

    def on_epoch_begin(self, args, state, control, **kwargs):
        if isinstance(self.trainer.sampler, BalancedSampler):
            # accelerate does not reach it where a resumed epoch is shared among processes.
            self.trainer.sampler.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args, state, control, **kwargs):
        if state.epoch % 1 == 0 or state.global_step >= state.max_steps:
            # The evaluation at the end of the epoch comes first: a run that is resumed from
            # this checkpoint would lack it.
            self.is_due = self.is_due or control.should_save
            control.should_save = False

    def on_epoch_end(self, args, state, control, **kwargs):
        # Whatever the strategy, a run ends with a checkpoint.
        if self.is_due or state.global_step >= state.max_steps:
            control.should_save = True
        self.is_due = False

    def on_evaluate(self, args, state, control, **kwargs):
        if is_exhausted(state.log_history, args):
            control.should_training_stop = True
            control.should_save = True


def is_exhausted(log: list[dict[str, Any]], arguments: XrayTrainingArguments) -> bool:
    """Return whether so many evaluations were no better that training stops early.

    Counted from the log and not kept in a callback, so that a resumed run counts the same.
    """
    metric = f"eval_{arguments.metric_for_best_model}"
    sign = 1 if arguments.greater_is_better else -1
    values = [sign * entry[metric] for entry in log if metric in entry]
    if not values or not arguments.early_stopping_patience:
        return False
    return len(values) - 1 - int(np.argmax(values)) >= arguments.early_stopping_patience


def _make_mix(arguments: XrayTrainingArguments):
    """Return mixup (Zhang et al. 2018), CutMix (Yun et al. 2019), one of both by lot, or None."""
    from torchvision.transforms import v2

    mixes = [
        make(alpha=alpha, num_classes=len(LABELS))
        for make, alpha in ((v2.MixUp, arguments.mixup), (v2.CutMix, arguments.cutmix))
        if alpha
    ]
    return v2.RandomChoice(mixes) if mixes else None
