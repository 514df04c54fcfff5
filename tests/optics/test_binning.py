"""Binning and its way back."""

from __future__ import annotations

import pytest
import torch

from bundle.optics.binning import binned, unbinned


@pytest.mark.parametrize("size", [(8, 12), (7, 9), (1, 1)])
def test_binning_means_pixels_and_the_way_back_keeps_places(size: tuple[int, int]) -> None:
    """Half a pixel of shift would look like a registration error; an odd border must neither darken nor vanish."""
    rows, columns = torch.meshgrid(*(torch.arange(side, dtype=torch.float32) for side in size), indexing="ij")
    ramp = (0.2 + 0.01 * rows + 0.03 * columns)[None, None]
    small = binned(ramp, 2)
    assert small.shape[-2:] == tuple(-(-side // 2) for side in size)
    assert small[0, 0, 0, 0] == pytest.approx(float(ramp[..., :2, :2].mean()))
    last_row, last_column = ((side - 1) // 2 * 2 for side in size)
    assert small[0, 0, -1, -1] == pytest.approx(float(ramp[..., last_row:, last_column:].mean()))
    back = unbinned(small, 2, *size)
    assert back.shape == ramp.shape
    inside = (..., slice(4, -4), slice(4, -4))
    assert torch.allclose(back[inside], ramp[inside], atol=1e-5)


def test_no_binning_is_no_copy() -> None:
    """Every image passes here; most are restored as they are."""
    image = torch.rand(1, 3, 5, 5)
    assert binned(image, 1) is image and unbinned(image, 1, 5, 5) is image
