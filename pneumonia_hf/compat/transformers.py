"""The parts of transformers without a public name that training needs; each with a public one here.

tests/compat/test_transformers.py fails when a part is renamed or no longer called.
"""

from __future__ import annotations

from transformers import PreTrainedModel, Trainer, TrainingArguments


class OpenTrainer(Trainer):
    """The Trainer with a public method for each step that a subclass may change."""

    # Move a batch to the device: before each step of training and evaluation.
    prepare_batch = Trainer._prepare_inputs
    make_train_sampler = Trainer._get_train_sampler  # the order of the training images
    save_checkpoint = Trainer._save_checkpoint  # and remove older ones
    load_checkpoint = Trainer._load_from_checkpoint  # its weights, when a run is resumed

    def _prepare_inputs(self, inputs):
        return self.prepare_batch(inputs)

    def _get_train_sampler(self, train_dataset=None):
        return self.make_train_sampler(train_dataset)

    def _save_checkpoint(self, model, trial):
        self.save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        self.load_checkpoint(resume_from_checkpoint, model)


def use_one_gpu(arguments: TrainingArguments) -> None:
    """Keep a single process from using all GPUs by nn.DataParallel, with a wrong loss."""
    arguments._n_gpu = min(arguments.n_gpu, 1)


def shard_embeddings_with_parent(model: PreTrainedModel) -> None:
    """Keep accelerate from sharding the patch embedding apart from its sharded parent: it fails."""
    names = model._no_split_modules
    model._no_split_modules = [name for name in names if not name.endswith("Embeddings")]
