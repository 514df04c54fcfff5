"""Measure a restoration of real pairs of focal planes, and whether sharp places stayed as they were.

    mop restore pairs/near --output restored/near --mpp 0.25
    mop restore pairs/far --output restored/far --mpp 0.25
    python scripts/measure_real_pairs.py pairs restored

PAIRS holds two folders of images of the same names: each field at two depths. Where the other plane is clearly sharper
it is the truth for this one; where this one is, it should stay as it is. RESTORED holds the same folders. A stage moves
sideways, too, on its way from one depth to the next: each truth is laid on its image first, by the translation at which
the two correlate best (`--as-recorded` leaves it out). Phase correlation does not find it: there every frequency has
the same say, and at most of them there is only the pattern of the sensor, which did not move (docs/real_defocus.md).
Prints means over the fields. Half a minute for 24 images of 512 px.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from scipy import ndimage
from skimage.filters import window
from skimage.metrics import structural_similarity
from skimage.registration import phase_cross_correlation

from bundle.messages import sentence, unwrapped
from bundle.slides.reader import open_image

SHARPER = 1.6  # times the detail energy of the other plane
TISSUE = 0.8  # grey level below which a pixel, smoothed, is no glass
LEAST_PIXELS = 3000  # of a field that count
EDGE_PX = 16
FARTHEST_PX = 16.0  # that a stage is believed to move

Image = NDArray[np.floating]  # (H, W, 3) in [0, 1]
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
    kept: tuple[float, float] | None  # where this plane is sharper: share of its detail left, gradients as they were


def read(path: Path) -> Image:
    """An image."""
    with open_image(path) as reader:
        return reader.read(0, 0, *reader.shape).astype(np.float32) / 255


def detail_energy(image: Image) -> Image:
    """Of the grey image, (H, W): its Laplacian of Gaussian of 1.5 px squared, smoothed."""
    return ndimage.gaussian_filter(ndimage.gaussian_laplace(image.mean(-1), 1.5) ** 2, 8) + 1e-9


def move_between(truth: Image, image: Image) -> tuple[float, float]:
    """Rows and columns, px, by which the truth has to move to lie on the image; (0, 0) if it would be too far."""
    both = [ndimage.gaussian_filter(one.mean(-1), 3) for one in (image, truth)]
    both = [(one - one.mean()) * window("hann", one.shape) for one in both]
    rows, columns = phase_cross_correlation(*both, upsample_factor=20, normalization=None)[0]
    return (0.0, 0.0) if max(abs(rows), abs(columns)) > FARTHEST_PX else (float(rows), float(columns))


def sharper(image: Image, other: Image) -> Mask:
    """Where an image shows clearly more detail than the other one."""
    mask = detail_energy(image) > SHARPER * detail_energy(other)
    mask[:EDGE_PX] = mask[-EDGE_PX:] = False
    mask[:, :EDGE_PX] = mask[:, -EDGE_PX:] = False
    return mask


def gradients(image: Image) -> Image:
    """Magnitudes of the gradient of the grey image, (H, W)."""
    return ndimage.gaussian_gradient_magnitude(image.mean(-1), 1)


def figures(image: Image, truth: Image, mask: Mask) -> Figures:
    """How near an image comes to its truth inside a mask."""
    _, ssim = structural_similarity(image, truth, data_range=1, channel_axis=-1, gaussian_weights=True, sigma=1.5,
                                    use_sample_covariance=False, full=True)
    agreement = np.corrcoef(gradients(image)[mask], gradients(truth)[mask])[0, 1]
    psnr = -10 * np.log10(((image - truth)[mask] ** 2).mean() + 1e-12)
    return Figures(float(psnr), float(ssim[mask].mean()), float(agreement))


def measure_field(image: Image, other: Image, restored: Image, as_recorded: bool = False) -> Field:
    """One plane of a field, its other plane and its restoration, all of one size."""
    move = (0.0, 0.0) if as_recorded else move_between(other, image)
    if any(move):
        other = ndimage.shift(other, (*move, 0), order=3, mode="nearest").clip(0, 1)
    tissue = ndimage.gaussian_filter(image.mean(-1), 4) < TISSUE
    blurred, sharp = sharper(other, image) & tissue, sharper(image, other) & tissue
    recorded = after = kept = None
    if blurred.sum() >= LEAST_PIXELS:
        recorded, after = figures(image, other, blurred), figures(restored, other, blurred)
    if sharp.sum() >= LEAST_PIXELS:
        left = detail_energy(restored)[sharp].sum() / detail_energy(image)[sharp].sum()
        kept = float(left), float(np.corrcoef(gradients(restored)[sharp], gradients(image)[sharp])[0, 1])
    return Field(float(np.hypot(*move)), recorded, after, kept)


def pairs_of(folder: Path) -> tuple[tuple[Path, Path], list[str]]:
    """The two folders of planes and the names of the images in both.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: it does not hold two folders of images of the same names.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"the pairs must be a folder, not found: {folder}.")
    sides = sorted((path for path in folder.iterdir() if path.is_dir()), key=lambda path: path.name, reverse=True)
    names = [sorted(path.name for path in side.iterdir() if not path.name.startswith(".")) for side in sides]
    if len(sides) != 2 or not names[0] or names[0] != names[1]:
        found = ", ".join(f"{side.name} ({len(held)} files)" for side, held in zip(sides, names, strict=True)) or "none"
        raise ValueError(f"{folder} must hold two folders of images of the same names, one a depth; found: {found}.")
    return (sides[0], sides[1]), names[0]


def measure(arguments: argparse.Namespace) -> None:
    """Print two tables."""
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
            fields.append(measure_field(image, truth, restored, arguments.as_recorded))
        recorded, restored_to = (_mean([getattr(field, what) for field in fields]) for what in ("recorded", "restored"))
        kept = _mean([field.kept for field in fields])
        columns.append([side.name, f"{sum(field.recorded is not None for field in fields)}",
                        f"{fmean(field.moved_px for field in fields):.1f} px", _said(recorded), _said(restored_to),
                        _gain(recorded, restored_to), "-" if kept is None else f"{kept[0]:.2f}, {kept[1]:.3f}"])
    rows = ("", "fields with places where the other plane is sharper", "truth moved by",
            "recorded there: PSNR, SSIM, gradient correlation", "restored", "gain",
            "sharp places: detail left, gradients as they were")
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


def main(typed: list[str] | None = None) -> int:
    """Parse the line above and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, help="folder of two folders of planes")
    parser.add_argument("restored", type=Path, help="folder of the same two folders, restored")
    parser.add_argument("--as-recorded", action="store_true", help="do not lay the truth on the image")
    try:
        measure(parser.parse_args(typed))
    except (ValueError, OSError) as error:
        print(f"measure_real_pairs.py: {sentence(unwrapped(error))}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
