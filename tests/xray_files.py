"""X-ray files for tests: encoded images, DICOM files and WebDataset shards."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from helpers import draw_xray
from PIL import Image

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
