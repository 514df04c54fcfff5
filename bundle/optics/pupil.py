"""How a pupil that is out of focus transfers detail: pupil -> PSF -> transfer function.

    f          spatial frequency, cycles/µm; the pupil passes |f| <= NA / wavelength
    P          pupil = 1[|f| <= NA/λ] exp(i phase(f)), spherical phase (paraxial is visibly wrong at NA 0.75)
    S          source: the part of the pupil that the condenser lights, |f| <= condenser * NA / λ
    C          conj(F⁻¹(S P)) · F⁻¹(P): the PSF |F⁻¹P|² when the condenser fills the pupil
    T_a, T_φ   F(Re C) and F(Im C): what absorption and phase of a weak object turn into, T_a(0) = 1, T_φ(0) = 0
    gain       (T_a(Δz) + phase_ratio · T_φ(Δz)) / T_a(0 µm): what a focused image must be multiplied with

Every pupil here is rotationally symmetric, so one row of each 2-D transfer function tells all of it; by the
projection-slice theorem that row is the 1-D Fourier transform of C summed along the other axis.

Sources: Goodman, Introduction to Fourier Optics (pupil, OTF); Streibl 1985 (partially coherent transfer functions).
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

GRID_PX = 256  # image pixels a side of the pupil grid: at 0.25 µm/px it holds a PSF of ±32 µm
NEGLIGIBLE = 0.05  # share of T_a below which a focused image holds no signal to blur


class Optics(NamedTuple):
    """An objective, its condenser and its errors. Defaults: a 40x scanner objective, incoherent light."""

    na: float = 0.75  # numerical aperture in air
    mpp: float = 0.25  # µm per pixel
    wavelengths_um: tuple[float, ...] = (0.61, 0.54, 0.46)  # of R, G, B
    immersion: float = 1.515  # refractive index around the tissue
    condenser: float = 1.0  # condenser NA over objective NA; 1 is incoherent
    spherical_waves: float = -0.1  # primary spherical aberration at the pupil's rim, waves: shows the sign of defocus
    chromatic_um: tuple[float, ...] = (0.1, 0.0, -0.15)  # focal shift of each channel, µm of stage travel
    phase_ratio: float = 0.0  # refraction of the object relative to its absorption; 0: it only absorbs
    beyond: float = 1.0  # gain at frequencies where the focused image holds no signal


# The two standard pairs of aperture and sampling: 40x and 20x.
OPTICS_40X = Optics()
OPTICS_20X = Optics(na=0.4, mpp=0.5)
COARSE_MPP = 0.36  # µm/px from which on an image counts as 20x


def standard_optics(mpp: float) -> Optics:
    """The standard objective of an image of `mpp` µm per pixel, at that pixel size."""
    return (OPTICS_40X if mpp < COARSE_MPP else OPTICS_20X)._replace(mpp=mpp)


def check_optics(optics: Optics) -> None:
    """Refuse an objective that cannot exist.

    Raises:
        ValueError: NA not in (0, 1), mpp or condenser not positive, or channel counts that differ.
    """
    if not 0 < optics.na < 1:
        raise ValueError(f"na must lie in (0, 1) for a stage that moves in air, got {optics.na}.")
    if optics.mpp <= 0 or optics.condenser <= 0:
        raise ValueError(f"mpp and condenser must be positive, got {optics.mpp} and {optics.condenser}.")
    if len(optics.wavelengths_um) != len(optics.chromatic_um):
        raise ValueError("wavelengths_um and chromatic_um must name the same channels, got "
                         f"{len(optics.wavelengths_um)} and {len(optics.chromatic_um)}.")


def pupil_frequencies(optics: Optics, grid_px: int = GRID_PX) -> Tensor:
    """|f| of the pupil grid, cycles/µm, (2 grid_px, 2 grid_px): half the pixel pitch, since 2NA/λ passes Nyquist."""
    axis = torch.fft.fftfreq(2 * grid_px, d=optics.mpp / 2, dtype=torch.float64)
    return torch.hypot(axis[:, None], axis[None, :])


def defocus_phase(f: Tensor, wavelength_um: float, stage_um: Tensor, depth_um: Tensor, immersion: float) -> Tensor:
    """Phase of a stage offset in air and of tissue depth in glass, rad; broadcasts `f` with the distances.

    A stage step of 0.8 µm defocuses about 1.7 times as much as 0.8 µm of tissue at NA 0.75.
    """
    sine2 = (wavelength_um * f).square()
    air = (1 - sine2).clamp(min=0).sqrt() - 1
    glass = (immersion**2 - sine2).clamp(min=0).sqrt() - immersion
    return 2 * math.pi / wavelength_um * (stage_um * air + depth_um * glass)


def best_focus_um(depth_um: Tensor | float, optics: Optics) -> Tensor | float:
    """Stage position at which tissue at `depth_um` (µm of glass) is sharpest: least-squares match of both phases."""
    wavelength_um = optics.wavelengths_um[len(optics.wavelengths_um) // 2]
    f = pupil_frequencies(optics)
    f = f[f <= optics.na / wavelength_um]
    one, zero = torch.ones(1, dtype=f.dtype), torch.zeros(1, dtype=f.dtype)
    air = defocus_phase(f, wavelength_um, one, zero, optics.immersion)
    glass = defocus_phase(f, wavelength_um, zero, one, optics.immersion)
    ratio = float(((air - air.mean()) * (glass - glass.mean())).mean() / air.var(correction=0))
    return -ratio * depth_um


def transfer_profile(optics: Optics, stage_um: Tensor, depth_um: Tensor | None = None,
                     grid_px: int = GRID_PX) -> tuple[Tensor, Tensor]:
    """T_a and T_φ along one frequency axis, each (K, channels, grid_px) float32, for K stage offsets and tissue depths.

    Args:
        stage_um: stage offsets, µm, (K,).
        depth_um: depths in glass, µm, (K,); None is 0.
        grid_px: image pixels a side of the pupil grid. Entry i is at i / (grid_px * mpp) cycles/µm.
    """
    check_optics(optics)
    stage = stage_um.double().view(-1, 1, 1)
    depth = torch.zeros_like(stage) if depth_um is None else depth_um.double().view(-1, 1, 1)
    f = pupil_frequencies(optics, grid_px)
    absorption, phase = [], []
    for wavelength_um, shift_um in zip(optics.wavelengths_um, optics.chromatic_um, strict=True):
        rim = optics.na / wavelength_um
        rho2 = (f / rim).square()
        aberration = 2 * math.pi * optics.spherical_waves * (6 * rho2.square() - 6 * rho2 + 1)
        angle = defocus_phase(f, wavelength_um, stage - shift_um, depth, optics.immersion) + aberration
        pupil = torch.polar((f <= rim).double(), angle).to(torch.complex64)
        amplitude = torch.fft.ifft2(pupil)
        lit = amplitude if optics.condenser >= 1 else torch.fft.ifft2(pupil * (f <= optics.condenser * rim))
        product = (lit.conj() * amplitude).sum(1)  # (K, 2 grid_px): the projection along rows
        total = product.real.sum(-1, keepdim=True)
        absorption.append(torch.fft.fft(product.real / total)[:, :grid_px].real)
        phase.append(torch.fft.fft(product.imag / total)[:, :grid_px].real)
    return torch.stack(absorption, 1), torch.stack(phase, 1)


def gain_profile(optics: Optics, stage_um: Tensor, depth_um: Tensor | None = None, grid_px: int = GRID_PX) -> Tensor:
    """Gain that turns a focused image into a defocused one, along one frequency axis, (K, channels, grid_px)."""
    absorption, phase = transfer_profile(optics, stage_um, depth_um, grid_px)
    focused, _ = transfer_profile(optics, torch.zeros(1), None, grid_px)
    gain = (absorption + optics.phase_ratio * phase) / focused.clamp(min=NEGLIGIBLE)
    return torch.where(focused > NEGLIGIBLE, gain, torch.full_like(gain, optics.beyond))


def on_image_grid(profile: Tensor, height: int, width: int) -> Tensor:
    """Spread a profile (..., grid_px) over the `rfft2` grid of an image, (..., height, width // 2 + 1).

    Both grids share the image's sampling, so entry i of the profile lies at i / grid_px cycles per pixel.
    """
    lower, share = _radial_entries(profile.shape[-1], height, width, profile.device)
    return profile[..., lower] * (1 - share) + profile[..., lower + 1] * share


@functools.lru_cache(maxsize=4)
def _radial_entries(grid_px: int, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Entry of a profile below each point of an `rfft2` grid, and the share of the entry above."""
    rows = torch.fft.fftfreq(height, device=device)
    columns = torch.fft.rfftfreq(width, device=device)
    position = torch.hypot(rows[:, None], columns[None, :]) * grid_px
    lower = position.floor().long().clamp(max=grid_px - 2)
    return lower, position - lower
