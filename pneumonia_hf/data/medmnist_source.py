"""The source `medmnist:SIZE`: PneumoniaMNIST."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from pneumonia_hf.data.dataset_rows import first_line
from pneumonia_hf.data.table import SPLIT_NAMES, RowTable, XrayData
from pneumonia_hf.errors import UserError
from pneumonia_hf.files import expand


def list_medmnist(where: str) -> XrayData:
    """List PneumoniaMNIST at 28, 64, 128 or 224 pixels: `medmnist:224`, or `medmnist:224@FOLDER`.

    It has no patients. Its images are cropped images of the Kermany set.
    """
    listing = XrayData()
    for name in ("train", "val", "test"):
        split, table = SPLIT_NAMES[name], RowTable()
        for number, label in enumerate(_load_medmnist(where, name)[1]):
            file = f"{split}/{number:05}.png"
            table.add(f"medmnist:{where}@@{name}#{number}", file, int(label), None)
        listing[split] = table.finish(listing)
    return listing


def read_medmnist(where: str, numbers: Sequence[int]) -> Iterator[bytes]:
    """Yield the numbered images of a split, `SIZE@@split`, as PNG files."""
    from PIL import Image

    where, _, split = where.rpartition("@@")
    images, _ = _load_medmnist(where, split)
    for number in numbers:
        buffer = io.BytesIO()
        Image.fromarray(images[number]).save(buffer, "PNG", compress_level=1)
        yield buffer.getvalue()


@lru_cache(maxsize=3)
def _load_medmnist(where: str, split: str) -> tuple[Any, Any]:
    """Return the images [N, H, W] and labels [N] of a split."""
    from medmnist import PneumoniaMNIST

    size, _, folder = where.partition("@")
    if size not in {"28", "64", "128", "224"}:
        raise UserError(f"PneumoniaMNIST has no size {size!r}; choose from 28, 64, 128 and 224.")
    root = expand(folder or "~/.medmnist")
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = root / f"pneumoniamnist{'' if size == '28' else f'_{size}'}.npz"
        data = PneumoniaMNIST(
            split=split, download=not file.exists(), root=str(root), size=int(size)
        )
    except Exception as error:
        # medmnist raises RuntimeError for any failed download.
        raise UserError(
            f"PneumoniaMNIST cannot be loaded ({first_line(error)}); download it from "
            f"https://medmnist.com into {root}."
        ) from error
    return data.imgs, data.labels.ravel()
