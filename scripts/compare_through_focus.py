"""Does the simulation defocus as a real microscope does? Transfer of detail and spectra of real and simulated planes.

    python scripts/compare_through_focus.py planes/ --sharpest 5 --mpp 0.2 --output through_focus.png

Reads   planes of one field, one picture each, in the order of their names
Writes  a figure; prints, for each plane, the contrast value measured and simulated, and the optics that fit best

The sharpest plane stands for the sharp image. Every other one is described by its transfer of detail

    H(f) = Σ Re(I conj(R)) / Σ |R|²    over windows of the registered field, f the spatial frequency

and is simulated from the sharpest one with the aperture, condenser, refraction and plane spacing that come closest to
the measured H in least squares. No picture of the field enters the figure. 10 planes of 1024 px: 60 s on 2 cores.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from bundle.conventions import from_uint8
from bundle.messages import as_program
from bundle.optics.contrast import contrast_value
from bundle.optics.focal_stack import to_linear
from bundle.optics.pupil import Optics, gain_profile
from bundle.optics.registration import register
from bundle.slides.reader import PICTURE_SUFFIXES

WINDOW_PX = 128
APERTURES = (0.3, 0.4, 0.55, 0.75)
CONDENSERS = (0.5, 0.7, 1.0)
PHASE_RATIOS = (-1.0, -0.6, -0.3, 0.0, 0.3)
SPACINGS_UM = (0.4, 0.8, 1.2, 1.6, 2.0, 3.0)
BAND_CYCLES_PER_PX = (0.02, 0.25)


class Fit(NamedTuple):
    """The optics that come closest to the measured planes."""

    optics: Optics
    spacing_um: float
    transfer: Tensor  # (planes, entries)
    error: float  # root mean square


def read_planes(folder: Path, side_px: int) -> Tensor:
    """The middle of every picture of a folder, (planes, 3, side, side), [0, 1].

    Raises:
        ValueError: fewer than three pictures, or one smaller than `side_px`.
    """
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in PICTURE_SUFFIXES)
    if len(paths) < 3:
        raise ValueError(f"a focal stack must have three planes or more, got {len(paths)} pictures in {folder}.")
    planes = []
    for path in paths:
        with Image.open(path) as file:
            pixels = np.asarray(file.convert("RGB"))
        top, left = ((side - side_px) // 2 for side in pixels.shape[:2])
        if min(top, left) < 0:
            raise ValueError(f"planes must be at least {side_px} px a side, {path.name} has {pixels.shape[:2]}.")
        planes.append(torch.from_numpy(pixels[top:top + side_px, left:left + side_px].copy()).permute(2, 0, 1))
    return from_uint8(torch.stack(planes))


def windows(field: Tensor) -> Tensor:
    """Spectra of half-overlapping Hann windows of the green channel in linear light, (N, WINDOW, WINDOW)."""
    green = to_linear(field)[1].unfold(0, WINDOW_PX, WINDOW_PX // 2).unfold(1, WINDOW_PX, WINDOW_PX // 2)
    green = green.reshape(-1, WINDOW_PX, WINDOW_PX)
    hann = torch.hann_window(WINDOW_PX)
    return torch.fft.fft2((green - green.mean((1, 2), keepdim=True)) * hann[:, None] * hann[None])


def radial_mean(values: Tensor) -> Tensor:
    """Mean over rings of (WINDOW, WINDOW): entry i lies at i / WINDOW cycles per px."""
    axis = torch.fft.fftfreq(WINDOW_PX) * WINDOW_PX
    ring = torch.hypot(axis[:, None], axis[None]).round().long().flatten()
    sums = torch.zeros(int(ring.max()) + 1).index_add_(0, ring, values.flatten())
    return (sums / torch.bincount(ring))[:WINDOW_PX // 2]


def measured_transfer(planes: Tensor, sharpest: int) -> tuple[Tensor, Tensor]:
    """H of every plane against the sharpest one and the power spectrum of each, both (planes, WINDOW / 2)."""
    reference = windows(planes[sharpest])
    power = radial_mean(reference.abs().square().mean(0))
    spectra = [windows(plane) for plane in planes]
    crossed = [radial_mean((some * reference.conj()).real.mean(0)) / power for some in spectra]
    return torch.stack(crossed), torch.stack([radial_mean(some.abs().square().mean(0)) for some in spectra])


def candidates(positions: Tensor, mpp: float) -> Iterator[Fit]:
    """Simulated transfer of every combination of optics and spacing; both signs of the stage."""
    grid = itertools.product(APERTURES, CONDENSERS, PHASE_RATIOS, SPACINGS_UM, (1, -1))
    for na, condenser, phase_ratio, spacing_um, direction in grid:
        optics = Optics(na=na, mpp=mpp, wavelengths_um=(0.54,), chromatic_um=(0.0,), condenser=condenser,
                        phase_ratio=phase_ratio)
        gains = gain_profile(optics, positions * spacing_um * direction, grid_px=WINDOW_PX)[:, 0]
        yield Fit(optics, spacing_um * direction, gains[:, :WINDOW_PX // 2], 0.0)


def best_fit(measured: Tensor, sharpest: int, mpp: float) -> Fit:
    """The candidate nearest to the measured transfer within the band."""
    positions = torch.arange(len(measured), dtype=torch.float32) - sharpest
    low, high = (round(edge * WINDOW_PX) for edge in BAND_CYCLES_PER_PX)
    scored = (fit._replace(error=float((fit.transfer - measured)[:, low:high].square().mean().sqrt()))
              for fit in candidates(positions, mpp))
    return min(scored, key=lambda fit: fit.error)


def drawn(measured: Tensor, power: Tensor, fit: Fit, mpp: float, sharpest: int) -> Figure:
    """Measured transfer, simulated transfer and spectra side by side."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), constrained_layout=True)
    frequency = np.arange(measured.shape[1]) / (WINDOW_PX * mpp)
    colours = plt.get_cmap("coolwarm")(np.linspace(0, 1, len(measured)))
    for plane, colour in enumerate(colours):
        label = f"{plane - sharpest:+d}"
        left.plot(frequency, measured[plane], color=colour, label=label)
        middle.plot(frequency, fit.transfer[plane], color=colour)
        right.semilogy(frequency, power[plane], color=colour)
    left.legend(title="plane", fontsize=7, ncols=2)
    optics = fit.optics
    left.set_title("real planes: transfer of detail")
    middle.set_title(f"simulated: NA {optics.na}, condenser {optics.condenser}, refraction {optics.phase_ratio:+}, "
                     f"{abs(fit.spacing_um)} µm apart", fontsize=10)
    right.set_title("real planes: power spectrum")
    for axes in (left, middle):
        axes.set_ylim(-0.4, 1.2)
        axes.axhline(0, color="grey", linewidth=0.5)
    for axes in (left, middle, right):
        axes.set_xlabel("cycles/µm")
        axes.set_xlim(0, BAND_CYCLES_PER_PX[1] * 1.6 / mpp)
    return figure


@as_program
def main(typed: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Compare real planes with simulated ones.")
    parser.add_argument("planes", type=Path, help="folder with the planes of one field")
    parser.add_argument("--sharpest", type=int, required=True, help="index of the sharpest plane")
    parser.add_argument("--mpp", type=float, default=0.25, help="µm per pixel (default 0.25)")
    parser.add_argument("--side-px", type=int, default=1024, help="side of the middle that is used (default 1024)")
    parser.add_argument("--output", type=Path, default=Path("through_focus.png"), help="figure to write")
    arguments = parser.parse_args(typed)
    planes, shifts_px = register(read_planes(arguments.planes, arguments.side_px))
    measured, power = measured_transfer(planes, arguments.sharpest)
    fit = best_fit(measured, arguments.sharpest, arguments.mpp)
    contrast = contrast_value(planes, planes[arguments.sharpest][None].expand_as(planes), arguments.mpp, clip=False)
    for plane, (shift_px, value) in enumerate(zip(shifts_px.tolist(), contrast.tolist(), strict=True)):
        curve, simulated = (values[plane, 2:33:6].tolist() for values in (measured, fit.transfer))
        print(f"plane {plane}: shift {shift_px[0]:+.1f}, {shift_px[1]:+.1f} px, contrast {value:.3f}, H measured "
              + " ".join(f"{h:+.2f}" for h in curve) + ", simulated " + " ".join(f"{h:+.2f}" for h in simulated))
    print(f"nearest optics: NA {fit.optics.na}, condenser {fit.optics.condenser}, refraction {fit.optics.phase_ratio}, "
          f"{fit.spacing_um} µm apart; root mean square difference of H {fit.error:.3f}")
    drawn(measured, power, fit, arguments.mpp, arguments.sharpest).savefig(arguments.output, dpi=110)


if __name__ == "__main__":
    raise SystemExit(main())
