"""MedMNIST: its file gives the splits, labels and images."""

import numpy as np
from helpers import draw_xray

from pneumonia_hf import read_xray
from pneumonia_hf.data.load import load_splits
from pneumonia_hf.data.sources import open_images


def test_medmnist_is_read_from_its_file(tmp_path):
    arrays = {}
    for split, count in (("train", 12), ("val", 6), ("test", 6)):
        arrays[f"{split}_images"] = np.stack(
            [np.asarray(draw_xray(n, ill=n % 2 == 1, size=(28, 28))) for n in range(count)]
        )
        arrays[f"{split}_labels"] = np.arange(count)[:, None] % 2
    np.savez(tmp_path / "pneumoniamnist.npz", **arrays)
    splits = load_splits(f"medmnist:28@{tmp_path}")
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 12,
        "validation": 6,
        "test": 6,
    }
    assert splits["train"]["label"][:] == [0, 1] * 6
    for n, (_, image) in enumerate(open_images(splits["train"])):
        assert np.array_equal(np.asarray(read_xray(image)), arrays["train_images"][n])
    assert sum(one.count for one in splits.issues) == 24  # it has no patients
