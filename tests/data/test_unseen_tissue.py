"""Tissue that no field shows: colours and contrasts as drawn, glass white, detail in its place, the same draw again."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.transforms import Compose
from torch import Tensor

from bundle.conventions import to_uint8
from bundle.data.phantom import tissue_phantom
from bundle.data.unseen_tissue import KNOTS_PX, RandDetailContrastd, RandStainMixd, mixed, with_gains


@pytest.fixture(scope="module")
def image() -> Tensor:
    return to_uint8(tissue_phantom(96, 128, torch.Generator().manual_seed(0)))


def wave(length_px: float) -> Tensor:
    """(3, 64, 128), cosines that a mirror at the border continues."""
    columns = torch.cos(2 * math.pi / length_px * (torch.arange(128) + 0.5))
    return to_uint8((0.5 + 0.2 * columns).expand(3, 64, 128))


def amplitude(image: Tensor) -> float:
    return float(image.float().std((1, 2)).mean()) / 255 * math.sqrt(2)


def test_channels_take_what_the_mixture_says(image: Tensor) -> None:
    """Rows are what comes out: transposed, a mixture would give colours that nobody drew."""
    assert torch.equal(mixed(image, torch.eye(3)), image.clamp(min=1))
    swapped = mixed(image, torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]))
    assert torch.equal(swapped, image[[2, 0, 1]].clamp(min=1))
    twice = mixed(image, 2 * torch.eye(3))  # twice the dye: the square of what passes
    assert (twice.float() / 255 - (image.float() / 255) ** 2).abs().max() < 0.006
    grey = mixed(image, torch.full((3, 3), 1 / 3))
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[1], grey[2])


def test_glass_stays_white_and_black_finite() -> None:
    """Density of 0 is infinite; a background that takes a colour is no stain."""
    transform = RandStainMixd(prob=1.0).set_random_state(0)
    for value in (0, 255):
        flat = torch.full((3, 8, 8), value, dtype=torch.uint8)
        for _ in range(20):
            out = transform({"label": flat})["label"]
            assert out.dtype == torch.uint8 and (int(out.min()) == 255 if value else int(out.max()) < 90)


def test_mixtures_reach_from_the_own_stain_to_grey_and_to_changed_places() -> None:
    """With the diagonal alone it would be RandStainNA again; with changed places alone the own stain would be lost."""
    transform = RandStainMixd().set_random_state(0)
    drawn = np.stack([transform.drawn_mixture() for _ in range(2000)])
    assert (drawn >= 0).all() and drawn.sum(2).min() >= 0.7 and drawn.sum(2).max() <= 1.4
    own = drawn.diagonal(0, 1, 2).min(1)
    assert (own > 0.9).mean() > 0.03
    foreign = drawn.argmax(2) != np.arange(3)
    assert 0.3 < foreign.any(1).mean() < 0.7
    alike = np.abs(drawn - drawn.mean(1, keepdims=True)).max((1, 2)) < 0.25
    assert 0.005 < alike.mean() < 0.5


@pytest.mark.parametrize(("length_px", "knot", "share"), [(32.0, 1, 1.0), (8.0, 2, 1.0), (4.0, 2, 0.5), (4.0, 3, 0.5)])
def test_each_wavelength_gets_its_gain(length_px: float, knot: int, share: float) -> None:
    """The gain of another band would blur where it should sharpen; half way between two knots each counts half."""
    plain = wave(length_px)
    for log2_gain in (-1.0, 0.6):
        gains = np.zeros(len(KNOTS_PX))
        gains[knot] = log2_gain
        ratio = amplitude(with_gains(plain, gains)) / amplitude(plain)
        assert ratio == pytest.approx(2 ** (share * log2_gain), rel=0.02)


def test_gains_of_one_leave_every_pixel(image: Tensor) -> None:
    """Odd sides, too; and the mean colour stays whatever the gains are."""
    for sides in ((96, 128), (95, 127)):
        part = image[:, :sides[0], :sides[1]]
        assert torch.equal(with_gains(part, np.zeros(len(KNOTS_PX))), part)
    middle = (image.float() * 0.5 + 64).round().to(torch.uint8)  # far from black and white: nothing is clipped
    strong = with_gains(middle, np.full(len(KNOTS_PX), 0.4))
    assert (strong.float().mean((1, 2)) - middle.float().mean((1, 2))).abs().max() < 0.1
    assert amplitude(strong) == pytest.approx(2**0.4 * amplitude(middle), rel=0.01)


def test_a_border_is_not_continued_by_the_opposite_one() -> None:
    """A transform that wraps round would draw the left border's nucleus at the right one."""
    image = torch.full((3, 64, 64), 230, dtype=torch.uint8)
    image[:, :, :6] = 60
    sharpened = with_gains(image, np.array([0.0, 0.4, 0.8, 0.0]))
    assert int((sharpened[:, :, -6:].int() - 230).abs().max()) <= 3


@pytest.mark.parametrize("transform", [RandStainMixd, RandDetailContrastd])
def test_draws_repeat_and_prob_is_the_share(transform: type, image: Tensor) -> None:
    """A run that goes on must see what the unbroken one would have seen; prob 0 leaves every image alone."""
    small = image[:, :32, :32]
    results = []
    for seed in (4, 4, 5):
        torch.manual_seed(len(results))
        drawn = Compose([transform(prob=1.0)]).set_random_state(seed)
        results.append(drawn({"label": small, "mpp": 0.25}))
    assert torch.equal(results[0]["label"], results[1]["label"]) and results[0]["mpp"] == 0.25
    assert not torch.equal(results[0]["label"], results[2]["label"])
    assert results[0]["label"].shape == small.shape and results[0]["label"].dtype == torch.uint8
    never, half = transform(prob=0.0).set_random_state(0), transform(prob=0.5).set_random_state(0)
    assert all(never({"label": small})["label"] is small for _ in range(20))
    assert 20 < sum(half({"label": small})["label"] is not small for _ in range(80)) < 60


def test_wrong_ranges_are_refused() -> None:
    """One sentence at construction, not a NaN in the thousandth step."""
    with pytest.raises(ValueError, match="purity must be above 0"):
        RandStainMixd(purity=0.0)
    for strength in ((0.0, 1.0), (1.4, 0.7), (0.7,)):
        with pytest.raises(ValueError, match="0 < least <= most"):
            RandStainMixd(strength=strength)
    with pytest.raises(ValueError, match="4 wavelengths"):
        RandDetailContrastd(log2_gains=((0.0, 1.0),))
    with pytest.raises(ValueError, match="4 wavelengths"):
        RandDetailContrastd(log2_gains=((1.0, 0.0),) * 4)


def test_other_types_are_refused(image: Tensor) -> None:
    """Values of [0, 1] taken for levels of 255 would come out black."""
    for change in (lambda wrong: mixed(wrong, torch.eye(3)), lambda wrong: with_gains(wrong, np.zeros(len(KNOTS_PX)))):
        with pytest.raises(TypeError, match="must be uint8"):
            change(image.float() / 255)
