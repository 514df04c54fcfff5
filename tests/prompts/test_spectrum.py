"""Local spectra."""

from __future__ import annotations

import pytest
import torch
from skimage.data import immunohistochemistry
from torch import Tensor
from torch.nn import functional

from bundle.prompts.spectrum import FAINTEST, LocalSpectrum


@pytest.fixture(scope="module")
def section() -> Tensor:
    """A non-square piece of the colon section, (1, 3, 128, 224)."""
    pixels = torch.from_numpy(immunohistochemistry()).permute(2, 0, 1)[None].float() / 255
    return pixels[..., 100:228, 60:284]


def test_powers_and_coherences_are_those_of_the_fourier_transform(section: Tensor) -> None:
    """Matrices stand for the transform because exported graphs have none; a wrong sign would read another distance."""
    seen = LocalSpectrum(16, window_px=32, stride_px=32)(section).view(1, 2, 6, 16, 5, 8)
    window = torch.hann_window(32)[:, None] * torch.hann_window(32)[None, :]
    tile = section[0, :, 32:64, 96:128]  # the window of row 1, column 3
    centred = tile - (tile * window).sum((1, 2), keepdim=True) / window.sum()
    transform = torch.fft.fft2(centred * window, norm="ortho")
    radius = 32 * torch.hypot(*torch.meshgrid(torch.fft.fftfreq(32), torch.fft.fftfreq(32), indexing="ij"))
    for ring in (1, 5, 15):
        # Rounded as in the source, ties upwards; half of the plane, as a real image's transform has
        inside = (torch.floor(radius + 0.5) == ring) & (torch.fft.fftfreq(32)[None, :] >= 0)
        power = transform[:, inside].abs().square().mean(1) + FAINTEST
        cross = (transform[0, inside] * transform[2, inside].conj()).real.mean()
        assert torch.allclose(seen[0, 0, :3, ring - 1, 1, 3], power.log(), atol=1e-3)
        assert seen[0, 0, 4, ring - 1, 1, 3] == pytest.approx(float(cross / (power[0] * power[2]).sqrt()), abs=1e-3)


def test_the_tile_is_the_mean_of_its_windows_and_the_last_window_stands_twice(section: Tensor) -> None:
    """Exported graphs want two windows along each side; the one that stands twice must not count twice."""
    seen = LocalSpectrum(8)(section).view(2, 6, 8, 3, 5)
    assert torch.equal(seen[..., -1, :], seen[..., -2, :]) and torch.equal(seen[..., :, -1], seen[..., :, -2])
    windows, tile = (part[:3, :, :-1, :-1].exp() - FAINTEST for part in seen)
    assert torch.allclose(tile, windows.mean((-2, -1), keepdim=True).expand_as(tile), rtol=1e-4, atol=1e-7)


def test_a_tile_does_not_see_its_batch(section: Tensor) -> None:
    """The distance of a tile must not depend on its neighbours in memory."""
    spectrum = LocalSpectrum(8)
    alone = spectrum(section)
    beside = spectrum(torch.cat([torch.rand_like(section), section]))[1:]
    assert torch.allclose(alone, beside, atol=1e-4)


def test_darkness_changes_nothing_and_blur_takes_the_fine_rings(section: Tensor) -> None:
    """A lamp that is turned down is not defocus; a blur is."""
    spectrum = LocalSpectrum(64)
    powers = spectrum(section)[:, :192, :-1, :-1].reshape(3, 64, -1).mean(-1)
    darker = spectrum(section - 0.1)[:, :192, :-1, :-1].reshape(3, 64, -1).mean(-1)
    assert torch.allclose(darker, powers, atol=0.01)
    blurred = functional.avg_pool2d(functional.pad(section, (2, 2, 2, 2), mode="reflect"), 5, stride=1)
    fall = powers - spectrum(blurred)[:, :192, :-1, :-1].reshape(3, 64, -1).mean(-1)
    assert float(fall[:, :2].max()) < 0.5 and float(fall[:, 20:].min()) > 1.5


def test_mixed_precision_does_not_reach_the_powers(section: Tensor) -> None:
    """Five decades of power rounded to three digits would be noise where the distance is told."""
    spectrum = LocalSpectrum(64)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = spectrum(section)
    assert torch.equal(mixed, spectrum(section))


@pytest.mark.parametrize(("frequencies", "window_px"), [(65, 128), (4, 127), (4, 32), (0, 128)])
def test_rings_that_a_window_does_not_hold_are_refused(frequencies: int, window_px: int) -> None:
    """A ring beyond half a cycle per pixel would be empty and divide by nothing."""
    with pytest.raises(ValueError, match="window_px must be even"):
        LocalSpectrum(frequencies, window_px)
