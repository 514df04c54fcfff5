"""Measure a restoration of real pairs of focal planes, and whether sharp places stayed as they were.

    mop restore pairs/near --output restored/near --mpp 0.25
    mop restore pairs/far --output restored/far --mpp 0.25
    python scripts/measure_real_pairs.py pairs restored

PAIRS holds two folders of images of the same names: each field at two depths. Where the other plane is clearly sharper
it is the truth for this one; where this one is, it should stay as it is. RESTORED holds the same folders. Planes may
lie beside each other: each truth is laid on its image first, as the planes of a focal stack are (`--as-recorded` leaves
it out). Phase correlation does not find that: every frequency has the same say there, and out of focus most have no
tissue left (docs/decisions/0019-pairs-beside-each-other.md). Prints means over the fields. Half a minute for 24 images
of 512 px.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from scipy import ndimage
from skimage.metrics import structural_similarity

from bundle.messages import as_program
from bundle.optics.focal_stack import to_linear
from bundle.optics.registration import agreement, register
from bundle.slides.reader import PICTURE_SUFFIXES, open_image

SHARPER = 1.6  # times the detail energy of the other plane
TISSUE = 0.8  # grey level below which a pixel, smoothed, is no glass
LEAST_PIXELS = 3000  # of a field that count
EDGE_PX = 16
LEAST_AGREEMENT = 0.1  # of the detail of two planes; less is another field

Image = NDArray[np.floating]  # (H, W, 3) in [0, 1]
Plane = NDArray[np.floating]  # (H, W)
Mask = NDArray[np.bool_]  # (H, W)


class Figures(NamedTuple):
    """Of one image against its truth, inside a mask: PSNR in dB, SSIM, correlation of gradient magnitudes."""

    psnr: float
    ssim: float
    gradients: float


class Field(NamedTuple):
    """One plane of a field."""

    moved_px: float  # that its truth was moved
    recorded: Figures | None  # where the other plane is sharper; None where hardly any place is
    restored: Figures | None
    kept: tuple[float, float] | None  # where this plane is sharper: share of its detail energy left, agreement with it


def read(path: Path) -> Image:
    """An image."""
    with open_image(path) as reader:
        return reader.read(0, 0, *reader.shape).astype(np.float32) / 255


def detail_energy(image: Image) -> Plane:
    """Of the grey image, (H, W): its Laplacian of Gaussian of 1.5 px squared, smoothed."""
    return ndimage.gaussian_filter(ndimage.gaussian_laplace(image.mean(-1), 1.5) ** 2, 8) + 1e-9


def laid_on(truth: Image, image: Image) -> tuple[Image, float]:
    """The truth moved onto an image, by the translation that defocus does not bias, and its length in px.

    Raises:
        ValueError: the two do not show one field, or are too small to tell.
    """
    planes = torch.from_numpy(np.stack([truth, image])).permute(0, 3, 1, 2)
    registered, displaced = register(planes)
    alike = float(agreement(to_linear(planes.double()).mean(1).numpy(), displaced.double().numpy())[0])
    if alike < LEAST_AGREEMENT:
        raise ValueError(f"the two planes must show one field, their detail agrees by {alike:.2f} only.")
    return registered[0].permute(1, 2, 0).numpy(), float(displaced[0].norm())


def sharper(image: Image, other: Image) -> Mask:
    """Where an image shows clearly more detail than the other one."""
    mask = detail_energy(image) > SHARPER * detail_energy(other)
    mask[:EDGE_PX] = mask[-EDGE_PX:] = False
    mask[:, :EDGE_PX] = mask[:, -EDGE_PX:] = False
    return mask


def gradients(image: Image) -> Plane:
    """Magnitudes of the gradient of the grey image, (H, W)."""
    return ndimage.gaussian_gradient_magnitude(image.mean(-1), 1)


def correlation(image: Image, truth: Image, mask: Mask) -> float:
    """Correlation of the magnitudes of their gradients inside a mask; 0 where one of them has none."""
    found, wanted = gradients(image)[mask], gradients(truth)[mask]
    return float(np.corrcoef(found, wanted)[0, 1]) if found.std() > 0 and wanted.std() > 0 else 0.0


def figures(image: Image, truth: Image, mask: Mask) -> Figures:
    """How near an image comes to its truth inside a mask."""
    _, ssim = structural_similarity(image, truth, data_range=1, channel_axis=-1, gaussian_weights=True, sigma=1.5,
                                    use_sample_covariance=False, full=True)
    psnr = -10 * np.log10(((image - truth)[mask] ** 2).mean() + 1e-12)
    return Figures(float(psnr), float(ssim[mask].mean()), correlation(image, truth, mask))


def measure_field(image: Image, other: Image, restored: Image, as_recorded: bool = False) -> Field:
    """One plane of a field, its other plane and its restoration, all of one size."""
    moved_px = 0.0
    if not as_recorded:
        other, moved_px = laid_on(other, image)
    tissue = ndimage.gaussian_filter(image.mean(-1), 4) < TISSUE
    blurred, sharp = sharper(other, image) & tissue, sharper(image, other) & tissue
    recorded = after = kept = None
    if blurred.sum() >= LEAST_PIXELS:
        recorded, after = figures(image, other, blurred), figures(restored, other, blurred)
    if sharp.sum() >= LEAST_PIXELS:
        left = detail_energy(restored)[sharp].sum() / detail_energy(image)[sharp].sum()
        kept = float(left), correlation(restored, image, sharp)
    return Field(moved_px, recorded, after, kept)


def pairs_of(folder: Path) -> tuple[tuple[Path, Path], list[str]]:
    """The two folders of planes and the names of the images in both.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: it does not hold two folders of images of the same names; hidden files do not count.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"the pairs must be a folder, got {folder}.")
    seen = [path for path in folder.iterdir() if not path.name.startswith(".")]
    sides = sorted((path for path in seen if path.is_dir()), key=lambda path: path.name, reverse=True)
    if len(sides) != 2:
        found = ", ".join(side.name for side in sides) or "none"
        raise ValueError(f"{folder} must hold two folders of images, one a depth; found: {found}.")
    one, other = ({path.name for path in side.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES} for side in sides)
    if not one or one != other:
        alone = f"only one has {min(one ^ other)}" if one != other else f"none ({', '.join(PICTURE_SUFFIXES)}) is there"
        raise ValueError(f"{sides[0]} and {sides[1].name} must hold images of the same names; {alone}.")
    return (sides[0], sides[1]), sorted(one)


def measure(arguments: argparse.Namespace) -> None:
    """Print a table.

    Raises:
        ValueError: sizes differ, or no field has places to be judged by.
    """
    sides, names = pairs_of(arguments.pairs)
    columns: list[list[str]] = []
    for side, other in (sides, sides[::-1]):
        fields = []
        for name in track(names, side.name, console=Console(stderr=True), transient=True):
            paths = side / name, other / name, arguments.restored / side.name / name
            image, truth, restored = (read(path) for path in paths)
            if not image.shape == truth.shape == restored.shape:
                sizes = ", ".join(f"{one.shape[0]} x {one.shape[1]}" for one in (image, truth, restored))
                raise ValueError(f"the two planes of {name} and its restoration must have one size, got {sizes}.")
            try:
                fields.append(measure_field(image, truth, restored, arguments.as_recorded))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        recorded, restored_to = (_mean([getattr(field, what) for field in fields]) for what in ("recorded", "restored"))
        kept = _mean([field.kept for field in fields])
        if recorded is None and kept is None:
            raise ValueError(f"no field of {side} has tissue where one plane is clearly sharper than the other.")
        columns.append([side.name, f"{sum(field.recorded is not None for field in fields)}",
                        f"{fmean(field.moved_px for field in fields):.1f} px", _said(recorded), _said(restored_to),
                        _gain(recorded, restored_to), f"{sum(field.kept is not None for field in fields)}",
                        "-" if kept is None else f"{kept[0]:.2f}, {kept[1]:.3f}"])
    rows = ("", "fields with places where the other plane is sharper", "truth moved by",
            "recorded there: PSNR, SSIM, gradient correlation", "restored", "gain",
            "fields with places where it is the sharper one itself", "detail energy left there, gradient correlation")
    for at, row in enumerate(rows):
        print(f"| {row} | {' | '.join(column[at] for column in columns)} |")
        if not at:
            print("|---|---|---|")


def _mean(rows: list[tuple[float, ...] | None]) -> tuple[float, ...] | None:
    """Of what was measured, None if nothing was."""
    measured = [row for row in rows if row is not None]
    return tuple(fmean(column) for column in zip(*measured, strict=True)) if measured else None


def _said(mean: tuple[float, ...] | None) -> str:
    return "-" if mean is None else f"{mean[0]:.2f} dB, {mean[1]:.3f}, {mean[2]:.3f}"


def _gain(before: tuple[float, ...] | None, after: tuple[float, ...] | None) -> str:
    if before is None or after is None:
        return "-"
    return "{:+.3f} dB, {:+.4f}, {:+.4f}".format(*(b - a for a, b in zip(before, after, strict=True)))


@as_program
def main(typed: list[str] | None = None) -> None:
    """Parse the line above and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, help="folder of two folders of planes")
    parser.add_argument("restored", type=Path, help="folder of the same two folders, restored")
    parser.add_argument("--as-recorded", action="store_true", help="do not lay the truth on the image")
    measure(parser.parse_args(typed))


if __name__ == "__main__":
    raise SystemExit(main())
