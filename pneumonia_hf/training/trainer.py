"""XrayTrainer: transformers' Trainer on uint8 pixels, with exact checkpoints."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Sampler
from transformers import AutoModelForImageClassification, TrainerState

from pneumonia_hf.compat.transformers import OpenTrainer, shard_embeddings_with_parent
from pneumonia_hf.distributed import is_sharded
from pneumonia_hf.errors import UserError
from pneumonia_hf.imaging.preprocess import normalise
from pneumonia_hf.models.activation_map import (
    collect_features,
    supports_activation_map,
    to_activation_map,
    to_log_odds,
)
from pneumonia_hf.training.arguments import PLATEAU, XrayTrainingArguments
from pneumonia_hf.training.augment import augment
from pneumonia_hf.training.averaging import load_average, make_average, save_average
from pneumonia_hf.training.boxes import KNOWN, MASKS
from pneumonia_hf.training.callback import TrainingCallback
from pneumonia_hf.training.checkpoints import (
    STATE_FILE,
    UNFINISHED,
    best_beside,
    install_checkpoint,
    is_exhausted,
    remove_old,
)
from pneumonia_hf.training.losses import BoxTargets, Targets
from pneumonia_hf.training.phases import rate_of_parameters
from pneumonia_hf.training.sampler import (
    BalancedSampler,
    MergingBatchSampler,
    draws_balanced,
    needs_two_images,
)

if TYPE_CHECKING:
    from pneumonia_hf.training.distillation import Teacher
    from pneumonia_hf.training.recipe import Recipe

DIVERGED = (
    "Training has diverged: the network outputs NaN; lower --learning_rate, or set "
    "--precision fp32. The last checkpoint from before that is kept."
)
ONE_IMAGE = (
    "This network cannot be trained on batches of one image, since its deepest map is 1 x 1; "
    "set --per_device_train_batch_size to 2 or more, or --image_size to a larger one."
)


class XrayTrainer(OpenTrainer):
    """The Trainer with augmentation on the device, averaged weights and exact checkpoints."""

    def __init__(
        self,
        *args,
        recipe: Recipe,
        sites: np.ndarray,
        cells: np.ndarray | None = None,
        teacher: Teacher | None = None,
        **kw,
    ) -> None:
        """Take the arguments of Trainer, and

        Args:
            recipe: its `augment` and `model.channels_last` are used.
            sites: number of the source of each training image, [N].
            cells: number of the cell of each for the BalancedSampler, [N].
            teacher: the model to distil.
        """
        super().__init__(*args, **kw)
        if self.args.box_weight and not supports_activation_map(self.model):
            raise UserError(
                f"--box_weight needs a network whose head reads the mean over all positions, which "
                f"{self.model.config.model_type} does not; leave it out."
            )
        if is_sharded():
            self._prepare_sharding()
        self.recipe = recipe
        self.rates = rate_of_parameters(self.model, self.args.layer_decay)
        self.sites, self.cells = sites, cells
        self.teacher = teacher
        self.mix = _make_mix(self.args, self.model.config.num_labels)
        self.sampler: Sampler | None = None
        self.features: list[Tensor] = []  # of the forward pass, if the loss needs them
        self.average: AveragedModel | None = None
        self.frozen_norms = [
            module
            for module in _batch_norms(self.model)
            if (own := list(module.parameters()))
            and not any(parameter.requires_grad for parameter in own)
        ]
        self.add_callback(TrainingCallback(self))

    def _prepare_sharding(self) -> None:
        if not self.is_fsdp_enabled:  # accelerate would silently train unsharded
            raise UserError("FSDP needs GPUs; use another file of train_scripts/accelerate.")
        for name in ("ema_decay", "average_from", "box_weight"):
            if getattr(self.args, name):
                raise UserError(f"--{name} does not work with FSDP; leave one of them out.")
        # A checkpoint must be a model folder: the saved model is made from it.
        self.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
        shard_embeddings_with_parent(self.model)

    # ---- The run

    def check(self) -> None:
        """Make optimizer, schedule and loader once, for their errors.

        Raises:
            ImportError, RuntimeError, ValueError, TypeError, KeyError: of the libraries.
            UserError: as `get_train_dataloader`.
        """
        if not is_sharded():
            self.create_optimizer_and_scheduler(num_training_steps=10)
            self.optimizer = self.lr_scheduler = None
        if not len(self.get_train_dataloader()):
            raise ValueError("dataloader_drop_last leaves no whole batch")

    def train_from(self, checkpoint: Path | None) -> None:
        """Train from `checkpoint`, if there is one and it is not the last of the phase."""
        if checkpoint is not None:
            state = TrainerState.load_from_json(str(checkpoint / STATE_FILE))
            is_last = state.global_step >= state.max_steps
            if is_last or is_exhausted(state.log_history, self.args):
                state.best_model_checkpoint = best_beside(checkpoint)
                self.state = state
                return
            # It is in the log already, and early stopping would count another one.
            self.args.eval_on_start = False
        self.train(resume_from_checkpoint=checkpoint and str(checkpoint))

    # ---- The batch

    def prepare_batch(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Augment and mix (in training) and normalise the batch, on its device."""
        inputs = super().prepare_batch(inputs)
        pixels = inputs["pixel_values"]
        masks, known = (inputs.pop(key, None) for key in (MASKS, KNOWN))
        if self.model.training:
            for norm in self.frozen_norms:
                norm.eval()  # else the running statistics of frozen layers would change
            if self.teacher:
                pixels = self.teacher.add_unlabelled(pixels)
            if masks is not None:
                count = len(pixels) - len(masks)  # unlabelled ones, without a box
                masks = torch.cat([masks, masks.new_zeros(count, *masks.shape[1:])])
                known = torch.cat([known, known.new_zeros(count)])
                pixels = torch.cat([pixels, masks.to(pixels)], dim=1)
            pixels, masks = augment(pixels, self.recipe.augment).split([1, pixels.shape[1] - 1], 1)
            if self.mix or self.teacher:
                pixels, inputs["labels"] = self._make_targets(pixels, inputs["labels"])
            if known is not None:
                inputs["labels"] = self._add_boxes(inputs["labels"], masks / 255, known)
        pixel_values = normalise(pixels, self.processing_class)
        if self.recipe.model.channels_last:
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        return inputs | {"pixel_values": pixel_values}

    def _make_targets(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Targets]:
        """Mix the labelled pixels, and return all pixels with their targets."""
        classes = self._to_shares(labels)
        if self.mix:
            mixed, classes = self.mix(pixels[: len(labels)].float(), labels)
            pixels = torch.cat([mixed, pixels[len(labels) :]])
        targets = self.teacher.make_targets(pixels, classes) if self.teacher else Targets(classes)
        return pixels, targets

    def _to_shares(self, labels: Tensor) -> Tensor:
        return nn.functional.one_hot(labels, self.model.config.num_labels).float()

    def _add_boxes(self, labels: Tensor | Targets, masks: Tensor, known: Tensor) -> Targets:
        if not isinstance(labels, Targets):
            labels = Targets(self._to_shares(labels))

        def read_map() -> Tensor:
            features = self.features[-1].float()
            found = to_activation_map(self.model, features, masks.shape[-2:])
            logits = found.values + found.rest[..., None, None]
            return to_log_odds(logits)

        return replace(labels, boxes=BoxTargets(masks, known, read_map))

    def compute_loss(self, model, inputs, *args, **kwargs):
        """Compute the loss of a batch, with the activation map for the loss of the boxes."""
        if not (isinstance(labels := inputs.get("labels"), Targets) and labels.boxes):
            return super().compute_loss(model, inputs, *args, **kwargs)
        with collect_features(self.model) as self.features:
            return super().compute_loss(model, inputs, *args, **kwargs)

    def make_train_sampler(self, train_dataset=None) -> Sampler | None:
        """Return the order of the training images, drawn alike from each site if it must be."""
        if draws_balanced(self.args, self.sites):
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            is_ill = (self.train_dataset.labels == 1).astype(int)
            self.sampler = BalancedSampler(is_ill, self.sites, seed, self.cells)
        else:
            self.sampler = super().make_train_sampler(train_dataset)
        return self.sampler

    def get_train_dataloader(self) -> DataLoader:
        """Make the Trainer's loader; a last batch of one image joins the one before, if it must.

        Raises:
            UserError: the network cannot be trained on batches of one image.
        """
        args, size = self.args, self.processing_class.size
        has_more = self.teacher is not None and self.teacher.unlabelled is not None
        norms = [norm for norm in _batch_norms(self.model) if norm not in self.frozen_norms]
        if has_more or is_sharded() or not (norms and needs_two_images(self.model, norms, size)):
            return super().get_train_dataloader()
        if args.train_batch_size == 1:
            raise UserError(ONE_IMAGE)
        if args.world_size > 1 or args.dataloader_drop_last:  # all batches are full
            return super().get_train_dataloader()
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=MergingBatchSampler(self.make_train_sampler(), args.train_batch_size),
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context,
        )
        return self.accelerator.prepare(loader)

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        """Make the loader of all validation images: the last batch is dropped in training alone."""
        drops, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = drops

    def prediction_step(self, *args, **kwargs) -> tuple[None, Tensor | None, Tensor | None]:
        """Return the logits without a loss.

        The Trainer's mean loss counts the images that pad the last batch; `compute_metrics`
        computes the exact one.
        """
        _, logits, labels = super().prediction_step(*args, **kwargs)
        return None, logits, labels

    # ---- The step

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Make the Trainer's optimizer, with the learning rate of each parameter."""
        if self.optimizer is not None or all(rate == 1 for rate in self.rates.values()):
            return super().create_optimizer(model)
        model = self.model if model is None else model
        decaying = set(self.get_decay_parameter_names(model))
        groups: dict[tuple[float, bool], list] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                rate = self.rates[name.replace("_fsdp_wrapped_module.", "")]
                groups.setdefault((rate, name in decaying), []).append(parameter)
        # The head's first: the Trainer logs the rate of the first group.
        ordered = sorted(groups.items(), key=lambda group: group[0], reverse=True)
        settings = [
            {
                "params": parameters,
                "lr": self.args.learning_rate * rate,
                "weight_decay": self.args.weight_decay * decays,
            }
            for (rate, decays), parameters in ordered
        ]
        kind, common = self.get_optimizer_cls_and_kwargs(self.args, model)
        self.optimizer = kind(settings, **common)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None) -> LRScheduler:
        """Make the Trainer's schedule; a plateau schedule follows the direction of the metric."""
        if self.args.lr_scheduler_type != PLATEAU:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            optimizer = self.optimizer if optimizer is None else optimizer
            plateau = ReduceLROnPlateau(
                getattr(optimizer, "optimizer", optimizer),
                mode="max" if self.args.greater_is_better else "min",
                factor=self.args.plateau_factor,
                patience=self.args.plateau_patience,
            )
            self.follow(plateau)
        return self.lr_scheduler

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, or raise a UserError if the loss is NaN."""
        if not np.isfinite(logs.get("loss", 0.0)):
            raise UserError(DIVERGED)
        super().log(logs, start_time)

    # ---- The averaged weights

    def update_average(self) -> None:
        """Update the averaged weights after a step, if there are any yet."""
        # The Trainer counts the step later.
        if self.state.global_step + 1 <= self.args.average_from * self.state.max_steps:
            return
        if self.average is None:
            self.average = make_average(self.model, self.args.ema_decay)
        self.average.update_parameters(self.model)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Evaluate with the averaged weights, if there are any."""
        if self.average is None:
            return super().evaluate(*args, **kwargs)
        live, self.model = self.model, self.average.module
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self.model = live

    # ---- The checkpoint

    def save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint in a temporary folder, rename it, then remove older ones."""
        folder, name = Path(self.args.output_dir), f"checkpoint-{self.state.global_step}"
        staged = folder / UNFINISHED / name
        if not all(torch.isfinite(weight).all() for weight in self.model.parameters()):
            raise UserError(DIVERGED)
        if self.args.should_save:
            shutil.rmtree(staged, ignore_errors=True)  # of a killed run
        self.accelerator.wait_for_everyone()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        self.args.output_dir = str(staged.parent)
        try:
            super().save_checkpoint(model, trial)
            if self.average is not None and self.args.should_save:
                save_average(self.average, staged)
        except Exception:  # safetensors, torch and the system each raise their own
            if self.args.should_save:
                shutil.rmtree(staged, ignore_errors=True)  # a disk may be full
            raise
        finally:
            self.args.save_total_limit, self.args.output_dir = limit, str(folder)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            install_checkpoint(folder, name)
        self.accelerator.wait_for_everyone()
        if self.args.local_process_index == 0:
            install_checkpoint(folder, name)  # on a machine with its own disk
        if best := self.state.best_model_checkpoint:
            self.state.best_model_checkpoint = str(folder / Path(best).name)
        if self.args.should_save:
            remove_old(folder, limit, self.state.best_model_checkpoint)

    def on_resume(self, folder: str) -> None:
        """Look for the best checkpoint beside this one: the run may have been moved."""
        self.state.best_model_checkpoint = best_beside(folder)

    def load_checkpoint(self, folder: str, model: nn.Module | None = None) -> None:
        """Load weights and averaged weights, each tensor or none.

        save_pretrained writes older key names than those of the ViT, DeiT, Swin and DINOv2
        modules, and the Trainer loads non-strictly: most tensors would silently keep their values.
        """
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super().load_checkpoint(folder, model)
            return
        model = model or self.model
        module = model.module if hasattr(model, "module") else model  # DDP wraps it
        saved = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32)
        module.load_state_dict(saved.state_dict(), strict=True)
        self.average = load_average(self.model, self.args.ema_decay, Path(folder))


def _batch_norms(model: nn.Module) -> list[nn.Module]:
    kinds = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
    return [module for module in model.modules() if isinstance(module, kinds)]


def _make_mix(arguments: XrayTrainingArguments, classes: int):
    """Return mixup (Zhang et al. 2018), CutMix (Yun et al. 2019), a random choice, or None."""
    from torchvision.transforms import v2

    mixes = [
        make(alpha=alpha, num_classes=classes)
        for make, alpha in ((v2.MixUp, arguments.mixup), (v2.CutMix, arguments.cutmix))
        if alpha
    ]
    return v2.RandomChoice(mixes) if mixes else None
