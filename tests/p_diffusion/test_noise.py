"""Noise of slide coordinates."""

from __future__ import annotations

import torch

from bundle.p_diffusion.noise import noise_at

GOLDEN = [0.313955, -0.645052, 1.139055]


def test_overlapping_tiles_see_the_same_noise() -> None:
    """Otherwise two restorations of the same tissue are blended, and the overlap shows as a seam."""
    both = noise_at(torch.tensor([[100, 200], [132, 248]]), 64, 80, seed=3, draw=2)
    assert torch.equal(both[0, :, 32:, 48:], both[1, :, :32, :32])


def test_noise_does_not_depend_on_the_batch() -> None:
    """The same slide must give the same pixels at any batch size."""
    places = torch.tensor([[0, 0], [7, 90_000]])
    assert torch.equal(noise_at(places, 9, 11, 5, 1)[1:], noise_at(places[1:], 9, 11, 5, 1))


def test_noise_is_standard_normal_and_white() -> None:
    """The schedule counts on unit variance; correlated noise would be painted into the tissue as texture."""
    noise = noise_at(torch.tensor([[12_345, 67_890]]), 512, 512, seed=1, draw=4)[0]
    assert abs(float(noise.mean())) < 0.005 and abs(float(noise.std()) - 1) < 0.005
    assert abs(float((noise.abs() < 1).float().mean()) - 0.6827) < 0.005
    for shift in ((0, 1), (1, 0), (1, 1), (0, 8), (16, 0)):
        assert abs(float((noise * noise.roll(shift, (1, 2))).mean())) < 0.005
    assert abs(float((noise[0] * noise[1]).mean())) < 0.005


def test_seeds_and_draws_are_different_fields() -> None:
    """Two samples of one tile must be two samples, and no step may repeat the noise of another."""
    place = torch.tensor([[5, 6]])
    first = noise_at(place, 128, 128, seed=0, draw=1)
    for other in (noise_at(place, 128, 128, seed=1, draw=1), noise_at(place, 128, 128, seed=0, draw=2)):
        assert abs(float((first * other).mean())) < 0.02


def test_the_field_is_the_one_of_this_release() -> None:
    """Golden value: a restored slide must be reproducible after an update. From noise_at([[2, 3]], 1, 1, 7, 1)."""
    value = noise_at(torch.tensor([[2, 3]]), 1, 1, seed=7, draw=1)[0, :, 0, 0]
    assert torch.allclose(value, torch.tensor(GOLDEN), atol=1e-5)

