"""A baseline that is weaker than the published one would flatter the chain."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.filters import unsharp_mask as skimage_unsharp_mask
from skimage.restoration import richardson_lucy as skimage_richardson_lucy
from torch import Tensor

from bundle.evaluation.baselines import blind_richardson_lucy, blur_width_px, richardson_lucy, unsharp_mask
from bundle.optics.camera import smoothed
from bundle.training.metrics import psnr


@pytest.fixture
def discs() -> Tensor:
    """Dark discs with steep edges on a light ground, (1, 3, 128, 160)."""
    generator = torch.Generator().manual_seed(5)
    rows, columns = torch.arange(128.0).view(-1, 1), torch.arange(160.0)
    image = torch.full((128, 160), 0.85)
    for row, column, radius in (torch.rand(14, 3, generator=generator) * torch.tensor([128, 160, 8])).tolist():
        image[torch.hypot(rows - row, columns - column) < radius + 5] = 0.25
    return image.expand(1, 3, -1, -1) * torch.tensor([0.9, 0.7, 1.0]).view(1, 3, 1, 1)


def test_unsharp_mask_agrees_with_scikit_image(discs: Tensor) -> None:
    """The table names a known method: it must be that method."""
    soft = smoothed(discs, 1.5)
    expected = skimage_unsharp_mask(soft[0].numpy(), radius=2.0, amount=1.3, channel_axis=0)
    result = unsharp_mask(soft, sigma_px=2.0, amount=1.3)[0].numpy()
    # The two cut their Gaussian at 3 and at 4 sigma.
    assert np.abs(result - expected)[:, 8:-8, 8:-8].max() < 5e-3


def test_richardson_lucy_agrees_with_scikit_image(discs: Tensor) -> None:
    """One missing step in an iteration still sharpens, only worse."""
    sigma_px = 1.7
    soft = smoothed(discs, sigma_px)
    offsets = np.arange(-5, 6)
    line = np.exp(-0.5 * (offsets / sigma_px) ** 2)
    kernel = np.outer(line, line) / line.sum() ** 2
    expected = np.stack([skimage_richardson_lucy(channel, kernel, num_iter=6) for channel in soft[0].double().numpy()])
    result = richardson_lucy(soft, sigma_px, iterations=6)[0].numpy()
    # Near the border scikit-image lets darkness in.
    assert np.abs(result - expected)[:, 48:-48, 48:-48].max() < 1e-3


@pytest.mark.parametrize("sigma_px", [1.0, 2.0, 3.5])
def test_the_width_of_blurred_edges_is_found(discs: Tensor, sigma_px: float) -> None:
    """Blind deconvolution with a wrong width rings, or does nothing."""
    found = blur_width_px(smoothed(discs, sigma_px)).item()
    assert found == pytest.approx(sigma_px, rel=0.2)


def test_noise_hardly_changes_the_width(discs: Tensor) -> None:
    """Every scanner's image is noisy: read as detail, noise would make all images look sharp."""
    generator = torch.Generator().manual_seed(0)
    soft = smoothed(discs, 2.0)
    noisy = soft + 2 / 255 * torch.randn(soft.shape, generator=generator)
    assert blur_width_px(noisy).item() == pytest.approx(blur_width_px(soft).item(), rel=0.15)


def test_blind_deconvolution_helps_a_gaussian_blur_and_each_image_has_its_own_width(discs: Tensor) -> None:
    """On the blur that it was made for the baseline has to win, whatever else is in the batch."""
    batch = torch.cat([smoothed(discs, 1.2), smoothed(discs, 2.5)])
    result = blind_richardson_lucy(batch, iterations=10)
    target = discs.expand_as(result)
    assert bool((psnr(result, target) > psnr(batch, target) + 1).all())
    torch.testing.assert_close(result[1:], blind_richardson_lucy(batch[1:], iterations=10))


def test_a_flat_image_stays_flat() -> None:
    """Empty glass has no edges to measure and must not become noise."""
    flat = torch.full((1, 3, 40, 40), 0.9)
    torch.testing.assert_close(blind_richardson_lucy(flat), flat, atol=1e-4, rtol=0)


def test_impossible_settings_are_refused() -> None:
    """A mistyped number in the config must not become a silent no-op."""
    with pytest.raises(ValueError, match="iterations must be positive and sigma_px not negative, got 0 and 1"):
        richardson_lucy(torch.rand(1, 3, 32, 32), 1.0, iterations=0)
