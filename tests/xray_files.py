"""X-ray files for tests: encoded images, DICOM files, Parquet and WebDataset shards."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from helpers import draw_xray
from PIL import Image

from pneumonia_hf import read_xray
from pneumonia_hf.data.sources import open_images

RAMP = np.tile(np.linspace(0, 4095, 256), (64, 1))


def encode(image: Image.Image, form: str, **options) -> bytes:
    """Return an image as a file of the given format."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def make_dicom(values: np.ndarray, **elements) -> bytes:
    """Return a 12-bit DICOM file of `values` [H, W] with the given elements."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
    dataset.Modality = "DX"
    dataset.Rows, dataset.Columns = values.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.PixelData = values.astype("<u2").tobytes()
    for name, value in elements.items():
        setattr(dataset, name, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def make_tar(path: Path, count: int, seed: int = 0) -> None:
    """Write a shard of drawn X-rays, PNEUMONIA first, two per patient."""
    with tarfile.open(path, "w") as archive:
        for n in range(count):
            row = {"label": ("PNEUMONIA", "NORMAL")[n % 2], "patient_id": f"p{n // 2}"}
            for extension, data in (
                ("png", encode(draw_xray(seed + n, ill=n % 2 == 0), "PNG")),
                ("json", json.dumps(row).encode()),
            ):
                entry = tarfile.TarInfo(f"xray{n:04}.{extension}")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))


def kinds_of(splits) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for one in splits.issues:
        found.setdefault(one.kind, []).append(one.file)
    return found


def make_parquet(count: int, seed: int = 0) -> bytes:
    from datasets import ClassLabel, Dataset, Features, Value
    from datasets import Image as ImageFeature

    features = Features(
        {
            "image": ImageFeature(),
            # Another order and case than ours, and a third class.
            "label": ClassLabel(names=["Pneumonia", "Normal", "covid"]),
            "view": Value("string"),
        }
    )
    rows = {
        "image": [
            {
                "bytes": encode(draw_xray(seed + n, ill=n % 2 == 0), "PNG"),
                "path": f"person{n // 2}_virus_{n}.jpeg",
            }
            for n in range(count)
        ],
        "label": [n % 2 for n in range(count - 1)] + [2],
        "view": ["PA"] * count,
    }
    buffer = io.BytesIO()
    Dataset.from_dict(rows, features=features).to_parquet(buffer)
    return buffer.getvalue()


def assert_equals_drawn(split, count: int, seed: int = 0) -> None:
    """Check labels and images against what make_parquet and make_tar draw."""
    assert split["label"][:] == [1 - n % 2 for n in range(count)]
    images = list(open_images(split))
    assert len(images) == count
    for n, (_, image) in enumerate(images):
        drawn = np.asarray(draw_xray(seed + n, ill=n % 2 == 0))
        assert np.array_equal(np.asarray(read_xray(image)), drawn)


def write_parquet(path, features: dict, **columns) -> None:
    from datasets import Dataset, Features

    Dataset.from_dict(columns, features=Features(features)).to_parquet(path)


def make_columns(count: int) -> dict:
    """Return an image column with file names of the Kermany set."""
    return {
        "image": [
            {
                "bytes": encode(draw_xray(n, ill=n % 2 == 1), "PNG"),
                "path": f"person{n // 3}_virus_{n}.png",
            }
            for n in range(count)
        ]
    }
