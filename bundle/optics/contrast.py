"""The contrast value: how much of the all-in-focus image's detail a plane still shows (the paper's "CTF value").

    c = Σ_band Re(F_I conj(F_R)) / Σ_band |F_R|²        band: 0.2 to 1.0 cycles/µm

F_I and F_R are Fourier transforms of the grey, mean-free, Hann-windowed plane and reference: c is the least-squares
contrast gain, 1 in focus, 0 when all detail is gone. Unlike energy ratios it does not count noise as detail.
The paper publishes no definition; docs/decisions/ says why this one.
"""

from __future__ import annotations

import torch
from torch import Tensor

BAND = (0.2, 1.0)  # cycles/µm
EMPTY = 1e-6  # mean squared detail of the reference below which contrast is undefined, (share of white)²


def contrast_value(image: Tensor, reference: Tensor, mpp: Tensor | float, clip: bool = True) -> Tensor:
    """Contrast of each image against its all-in-focus reference.

    Args:
        image: planes, (B, 3, H, W), [0, 1].
        reference: all-in-focus images, (B, 3, H, W), [0, 1].
        mpp: µm per pixel, a number or (B,).
        clip: clip to [0, 1].

    Returns:
        (B,) float32; NaN where the reference holds almost no detail in the band.

    Raises:
        ValueError: the shapes differ.
    """
    if image.shape != reference.shape:
        raise ValueError(f"image and reference must have one shape, got {tuple(image.shape)} "
                         f"and {tuple(reference.shape)}.")
    height, width = image.shape[-2:]
    window = _hann(height, image)[:, None] * _hann(width, image)[None, :]
    rows = torch.fft.fftfreq(height, device=image.device)
    columns = torch.fft.rfftfreq(width, device=image.device)
    per_px = torch.hypot(rows[:, None], columns[None, :])
    per_um = per_px / torch.as_tensor(mpp, dtype=torch.float32, device=image.device).view(-1, 1, 1)
    # rfft2 keeps half of the plane: its inner columns stand for two.
    twice = torch.where((columns == 0) | (columns == 0.5), 1.0, 2.0)
    band = ((per_um >= BAND[0]) & (per_um <= BAND[1])) * twice
    spectrum, truth = _spectrum(image, window), _spectrum(reference, window)
    shared = ((spectrum * truth.conj()).real * band).sum((-2, -1))
    energy = (truth.abs().square() * band).sum((-2, -1))
    detail = energy / (height * width * window.square().sum())
    value = torch.where(detail > EMPTY, shared / energy.clamp(min=1e-12), torch.nan)
    return value.clamp(0, 1) if clip else value


def _hann(length: int, like: Tensor) -> Tensor:
    return torch.hann_window(length, periodic=True, device=like.device, dtype=torch.float32)


def _spectrum(image: Tensor, window: Tensor) -> Tensor:
    grey = image.float().mean(1)
    return torch.fft.rfft2((grey - grey.mean((-2, -1), keepdim=True)) * window)
