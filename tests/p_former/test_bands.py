"""Band gains: the P-former's last step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bundle.p_former.bands import BandGains
from bundle.training.objectives import BandLoss

SIGMAS = (1.0, 3.0)


def inputs(height: int = 128, width: int = 192) -> tuple[Tensor, Tensor, Tensor]:
    """An image, a coarse image and a defocus prompt."""
    drawn = torch.Generator().manual_seed(0)
    image, change = (torch.rand(2, 3, height, width, generator=drawn) for _ in range(2))
    return image, (0.8 * image + 0.2 * change), torch.rand(2, 5, height // 32, width // 32, generator=drawn)


def made(hidden: int = 6) -> BandGains:
    """Gains that are not zero."""
    torch.manual_seed(1)
    bands = BandGains(5, frequencies=4, hidden=hidden, sigmas_px=SIGMAS).eval()
    for weight in bands.reader.last.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    return bands


def test_untrained_it_leaves_the_coarse_image_as_it_is() -> None:
    """A stage that has learned nothing must not change a pixel."""
    image, coarse, defocus = inputs()
    assert torch.equal(BandGains(5, frequencies=4, hidden=6)(image, coarse, defocus), coarse)


def test_bands_and_what_is_left_of_them_sum_to_the_image() -> None:
    """Otherwise a gain of one in every band would not be the image again."""
    image, coarse, _ = inputs()
    bands = made().bands(image, coarse)
    assert bands.shape == (2, 3, 4, 128, 192)
    assert (bands.mean((-2, -1)).abs() < 1e-3).all()  # the colour of a place is no band's
    for got, whole in ((bands[:, :, :2], coarse), (bands[:, :, 2:], coarse - image)):
        broad = whole - got.sum(2)
        assert broad.diff().abs().mean() < 0.2 * whole.diff().abs().mean()


def test_the_loss_is_the_squared_error_of_the_pixels() -> None:
    """Training sees products of bands only: they must stand for the pixels that will be shown."""
    image, coarse, _ = inputs()
    bands, label = made(), torch.rand(2, 3, 128, 192, generator=torch.Generator().manual_seed(3))
    gains = torch.randn(2, 3, 4, 2, 3, generator=torch.Generator().manual_seed(4))
    each_pixel = gains.repeat_interleave(64, -2).repeat_interleave(64, -1)
    result = coarse + (each_pixel * bands.bands(image, coarse)).sum(2)
    wanted = (result - label).square().mean((1, 2, 3)).log().mean()
    assert BandLoss(0.0)(gains, bands.products(image, coarse, label)).isclose(wanted, rtol=1e-4)


def test_it_is_a_filter_of_both_images() -> None:
    """Where neither image shows any detail none may appear, whatever the prompts say."""
    flat = torch.full((1, 3, 128, 128), 0.6)
    assert torch.allclose(made()(flat, flat, torch.rand(1, 5, 4, 4)), flat, atol=1e-6)


def test_sizes_that_are_no_whole_cells_are_restored_but_not_trained_on() -> None:
    """Tiles at the border of a slide have any size; a training patch of broken cells would be weighed wrongly."""
    image, coarse, defocus = inputs(160, 96)
    bands = made()
    assert bands(image, coarse, defocus).shape == image.shape
    with pytest.raises(ValueError, match="multiples of 64, got \\(160, 96\\)"):
        bands.products(image, coarse, image)


def test_gains_change_slowly_over_the_image() -> None:
    """Steps between cells would be seams inside a tile: they are what `interpolate` makes of them, bilinear."""
    image, coarse, defocus = inputs(160, 96)
    bands = made()
    gains = bands.reader(bands.seen(coarse, defocus))
    smooth = torch.nn.functional.interpolate(gains.flatten(1, 2), scale_factor=64.0, mode="bilinear")[..., :160, :96]
    wanted = coarse + (smooth.unflatten(1, (3, -1)) * bands.bands(image, coarse)).sum(2)
    assert gains.std() > 0.01
    assert torch.allclose(bands(image, coarse, defocus), wanted, atol=1e-5)


@pytest.mark.parametrize("sigmas", [(), (0.0, 1.0), (2.0, 1.0), (1.0, 1.0)])
def test_gaussians_must_ascend(sigmas: tuple[float, ...]) -> None:
    """A band between two equal or swapped Gaussians is empty or negative."""
    with pytest.raises(ValueError, match="sigmas_px must be positive and ascend"):
        BandGains(5, sigmas_px=sigmas)
