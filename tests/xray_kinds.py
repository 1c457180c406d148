"""One X-ray as a file of every kind that is read."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image


def encode_images(gray: Image.Image, small: bool = True) -> dict[str, bytes]:
    """Return a gray X-ray in every image format that `read_xray` supports."""
    rng = np.random.default_rng(0)
    deep = (np.asarray(gray, np.uint16) << 4) + rng.integers(0, 16, gray.size[::-1], np.uint16)
    colours = Image.merge("RGB", [gray, gray.point(lambda v: v // 2), gray])
    clear = colours.copy()
    clear.putalpha(gray)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a maker"
    kinds = {
        "jpeg": (gray, "JPEG", {"quality": 90, "exif": exif}),
        "jpeg progressive": (colours, "JPEG", {"progressive": True}),
        "png 8": (gray, "PNG", {}),
        "png 16": (Image.fromarray(deep), "PNG", {}),
        "png rgba": (clear, "PNG", {}),
        "png palette": (colours.quantize(64), "PNG", {"transparency": 3}),
        "tiff": (gray, "TIFF", {}),
        "tiff lzw": (gray, "TIFF", {"compression": "tiff_lzw"}),
        "tiff deflate 16": (Image.fromarray(deep), "TIFF", {"compression": "tiff_deflate"}),
        "tiff float": (Image.fromarray(deep.astype(np.float32)), "TIFF", {}),
        "tiff jpeg": (colours, "TIFF", {"compression": "jpeg"}),
        "bmp": (gray, "BMP", {}),
        "bmp rgb": (colours, "BMP", {}),
        "webp": (colours, "WEBP", {"quality": 80}),
        "webp lossless": (clear, "WEBP", {"lossless": True}),
    }
    seeds = {}
    for kind, (image, form, options) in kinds.items():
        if small or kind in {"jpeg", "png 16", "webp"}:
            buffer = io.BytesIO()
            image.save(buffer, form, **options)
            seeds[kind] = buffer.getvalue()
    return seeds


def encode_dicoms(step: int) -> dict[str, bytes]:
    """Return the real X-ray of pydicom-data, every `step`th pixel, in each transfer syntax."""
    import gdcm
    import pydicom
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit, RLELossless

    data = find_dicom("RG1_UNCR.dcm")
    dataset = pydicom.dcmread(io.BytesIO(data))
    values = np.ascontiguousarray(dataset.pixel_array[::step, ::step])
    dataset.Rows, dataset.Columns = values.shape
    dataset.PixelData = values.tobytes()
    seeds = {"dicom": write_dicom(dataset)}
    names = {
        "dicom jpeg lossless": gdcm.TransferSyntax.JPEGLosslessProcess14_1,
        "dicom jpeg process 14": gdcm.TransferSyntax.JPEGLosslessProcess14,
        "dicom jpeg-ls": gdcm.TransferSyntax.JPEGLSLossless,
        "dicom jpeg 2000": gdcm.TransferSyntax.JPEG2000Lossless,
        "dicom big endian": gdcm.TransferSyntax.ExplicitVRBigEndian,
        "dicom implicit": gdcm.TransferSyntax.ImplicitVRLittleEndian,
        "dicom deflated": gdcm.TransferSyntax.DeflatedExplicitVRLittleEndian,
    }
    for name, syntax in names.items():
        seeds[name] = transcode(seeds["dicom"], syntax)
    gray = (values >> 7).astype(np.uint8)
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.WindowCenter, dataset.WindowWidth = 15000 >> 7, 30000 >> 7
    buffer = io.BytesIO()
    Image.fromarray(gray).save(buffer, "JPEG", quality=95)
    dataset.PixelData = encapsulate([buffer.getvalue()])
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    seeds["dicom jpeg"] = write_dicom(dataset)
    dataset = pydicom.dcmread(io.BytesIO(seeds["dicom"]))
    dataset.compress(RLELossless, encoding_plugin="pydicom")
    seeds["dicom rle"] = write_dicom(dataset)
    if step > 1:
        names = {
            "palette": "OBXXXX1A",
            "ybr": "SC_ybr_full_uncompressed",
            "rgb": "color-pl",
            "jpeg 2000 rgb": "US1_J2KR",
            "voi lut": "vlut_04",
            "modality lut": "mlut_18",
        }
        seeds |= {f"dicom {kind}": find_dicom(f"{name}.dcm") for kind, name in names.items()}
    return seeds


def find_dicom(name: str) -> bytes:
    import data_store

    return (Path(data_store.__file__).parent / "data" / name).read_bytes()


def write_dicom(dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def transcode(data: bytes, syntax: int) -> bytes:
    """Return a DICOM file in another transfer syntax, by GDCM, which needs files."""
    import gdcm

    with tempfile.TemporaryDirectory() as folder:
        before, after = f"{folder}/before.dcm", f"{folder}/after.dcm"
        Path(before).write_bytes(data)
        reader, change, writer = (
            gdcm.ImageReader(),
            gdcm.ImageChangeTransferSyntax(),
            gdcm.ImageWriter(),
        )
        reader.SetFileName(before)
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFileName(after)
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        return Path(after).read_bytes()


def collect_seeds(
    xrays: Path | None, full_size: bool = True
) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Return small X-rays of each kind, and some of full size if wanted."""
    files = sorted(xrays.rglob("*.jp*g")) if xrays and xrays.exists() else []
    if files:
        gray = Image.open(files[0]).convert("L")
    else:
        import pydicom

        dataset = pydicom.dcmread(io.BytesIO(find_dicom("RG1_UNCR.dcm")))
        gray = Image.fromarray(255 - (dataset.pixel_array >> 7).astype(np.uint8))
    small = gray.copy()
    small.thumbnail((400, 400))
    seeds = encode_images(small) | encode_dicoms(6)
    if not full_size:
        return seeds, {}
    full = {f"full {kind}": data for kind, data in encode_images(gray, small=False).items()}
    full |= {f"full {kind}": data for kind, data in encode_dicoms(1).items()}
    full["full dicom jpeg 2000 lossy"] = find_dicom("RG1_J2KI.dcm")
    return seeds, full
