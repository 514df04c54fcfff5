"""Canny as tensor operations: the same edges as scikit-image's, for any batch, size and tracer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage import color, data, feature, filters
from torch import Tensor, nn

from bundle.prompts.canny import canny, hysteresis

SETTINGS = [(1.0, 0.1, 0.2), (2.0, 0.05, 0.1), (1.4, 0.03, 0.15), (0.0, 0.1, 0.3)]


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    """(300, 512, 3) float64 in [0, 1] of scikit-image's colon section: not square, so that swapped axes show."""
    return data.immunohistochemistry()[100:400].astype(np.float64) / 255


def as_batch(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None].float()


@pytest.mark.parametrize("blur_px", [0.0, 1.0, 3.0])
@pytest.mark.parametrize(("sigma", "low", "high"), SETTINGS)
def test_edges_agree_with_scikit_image_on_sharp_and_blurred_tissue(
    tissue: np.ndarray, blur_px: float, sigma: float, low: float, high: float
) -> None:
    """If it fails, the edge prompt is not Canny: weights and thresholds from elsewhere mean something else here."""
    image = filters.gaussian(tissue, blur_px, channel_axis=-1) if blur_px else tissue
    expected = feature.canny(color.rgb2gray(image), sigma, low, high)
    edges = canny(as_batch(image), sigma, low, high)[0, 0].numpy() > 0
    assert (edges == expected).mean() >= 0.99
    # F1, because a map without edges would also agree on nine pixels of ten.
    assert 2 * (edges & expected).sum() / (edges.sum() + expected.sum()) >= 0.95
    followed_to_the_end = canny(as_batch(image), sigma, low, high, hysteresis_steps=400)[0, 0].numpy() > 0
    assert (followed_to_the_end == expected).mean() >= 0.9999


def test_a_soft_step_gives_one_straight_line_in_its_middle() -> None:
    """The anchor: if it fails, edges are doubled, thick or shifted, and agreement on tissue may come from luck."""
    image = torch.zeros(1, 3, 20, 30)
    image[..., 12] = 0.5
    image[..., 13:] = 1
    expected = torch.zeros(20, 30)
    expected[1:-1, 12] = 1
    assert torch.equal(canny(image, 1.0, 0.1, 0.2)[0, 0], expected)
    assert torch.equal(canny(image.transpose(2, 3), 1.0, 0.1, 0.2)[0, 0], expected.T)


def test_a_tile_does_not_see_its_batch(tissue: np.ndarray) -> None:
    """If it fails, a restored slide shows seams wherever the batch changes."""
    tiles = torch.cat([as_batch(tissue[:, start : start + 150]) for start in (0, 150, 300)])
    together = canny(tiles, 1.5, 0.05, 0.1)
    for index in range(3):
        assert torch.equal(together[index : index + 1], canny(tiles[index : index + 1], 1.5, 0.05, 0.1))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 2), (3, 5), (64, 3)])
def test_the_smallest_images_have_edges_too(size: tuple[int, int]) -> None:
    """If it fails, the last sliver of a slide ends the run."""
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    edges = canny(image, 2.0, 0.05, 0.1)
    assert edges.shape == (2, 1, *size) and edges.dtype == torch.float32
    for index in range(2):
        expected = feature.canny(color.rgb2gray(image[index].permute(1, 2, 0).double().numpy()), 2.0, 0.05, 0.1)
        assert np.array_equal(edges[index, 0].numpy() > 0, expected)


def test_a_flat_image_has_no_edges() -> None:
    """If it fails, blank glass is full of edges."""
    assert canny(torch.full((1, 3, 16, 16), 0.9), 1.0, 1e-5, 1e-5).sum() == 0
    assert canny(torch.zeros(1, 3, 16, 16), 1.0, 0.0, 0.0).sum() == 0


def test_a_weak_edge_is_followed_one_pixel_a_step_and_round_corners() -> None:
    """If it fails, the number of steps in a config does not mean pixels."""
    weak = torch.zeros(1, 1, 9, 9, dtype=torch.bool)
    weak[..., 4, 1:8] = True
    weak[..., 5, 8] = True  # touches the line's end by a corner only
    strong = torch.zeros_like(weak)
    strong[..., 4, 1] = True
    assert [int(hysteresis(strong, weak, steps).sum()) for steps in (0, 1, 6, 7, 20)] == [1, 2, 7, 8, 8]


def test_traced_and_exported_edges_equal_the_eager_ones_at_another_size() -> None:
    """If it fails, an exported network draws the edges of the image that it was traced with."""

    class Edges(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return canny(image, 0.5, 0.05, 0.1, hysteresis_steps=2)

    generator = torch.Generator().manual_seed(0)
    example, other = torch.rand(2, 3, 24, 30, generator=generator), torch.rand(3, 3, 33, 21, generator=generator)
    auto = torch.export.Dim.AUTO
    exported = torch.export.export(Edges(), (example,), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
    with pytest.warns(DeprecationWarning, match="jit.trace"):
        traced = torch.jit.trace(Edges(), example)
    assert torch.equal(traced(other), Edges()(other))
    assert torch.equal(exported.module()(other), Edges()(other))


@pytest.mark.parametrize(
    ("arguments", "value"),
    [((-1.0, 0.1, 0.2), "sigma -1.0"), ((1.0, 0.3, 0.2), "low 0.3"), ((1.0, 0.1, 0.2, -1), "-1")],
)
def test_impossible_numbers_are_named(arguments: tuple[float, ...], value: str) -> None:
    """If it fails, a typing error in a config gives an empty prompt instead of a sentence."""
    with pytest.raises(ValueError, match=value):
        canny(torch.zeros(1, 3, 8, 8), *arguments)
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        canny(torch.zeros(1, 1, 8, 8))
