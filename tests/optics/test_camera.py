"""What the camera adds."""

from __future__ import annotations

import torch

from bundle.optics.camera import Camera, record, smoothed
from bundle.optics.focal_stack import to_linear, to_srgb


def recorded(image: torch.Tensor, seed: int = 0, **camera: object) -> torch.Tensor:
    settings = {"jpeg_quality": 0, "read_noise": 0.0, **camera}
    return record(image, Camera(**settings), torch.Generator().manual_seed(seed))  # type: ignore[arg-type]


def test_shot_noise_follows_the_light() -> None:
    """Noise of the wrong size teaches the networks to smooth, or to invent grain."""
    for level in (0.2, 0.8):
        light = torch.full((3, 200, 200), level)
        noise = to_linear(recorded(to_srgb(light), full_well=2_000.0)) - light
        assert abs(float(noise.std()) / (level / 2_000) ** 0.5 - 1) < 0.05
        assert abs(float(noise.mean())) < 0.001


def test_what_is_recorded_is_an_eight_bit_image() -> None:
    """Scanners store 256 levels; networks must not learn from what no file holds."""
    image = recorded(torch.rand(3, 32, 48), jpeg_quality=80)
    assert torch.equal((image * 255).round() / 255, image) and float(image.min()) >= 0 and float(image.max()) <= 1


def test_the_same_seed_records_the_same_image() -> None:
    """A simulated data set must be repeatable."""
    image = torch.rand(3, 24, 24)
    assert torch.equal(recorded(image, 3), recorded(image, 3))
    assert not torch.equal(recorded(image, 3), recorded(image, 4))


def test_smoothing_keeps_flat_images_and_small_ones() -> None:
    """Colour correction smooths every tile, those of one pixel too; borders must not darken."""
    for size in ((1, 1), (2, 5), (40, 30)):
        flat = torch.full((1, 3, *size), 0.4)
        assert torch.allclose(smoothed(flat, 16.0), flat, atol=1e-6)


def test_srgb_and_linear_light_are_inverse() -> None:
    """Half of the light is the grey value 188 of 255: the anchor of the sRGB curve."""
    image = torch.linspace(0, 1, 256)
    assert torch.allclose(to_srgb(to_linear(image)), image, atol=1e-5)
    assert round(float(to_srgb(torch.tensor(0.5)) * 255)) == 188


def test_red_and_blue_may_be_noisier_than_green() -> None:
    """White balance and the colour matrix amplify them: on the real pairs of planes red's noise is twice green's."""
    grey = torch.full((3, 128, 128), 0.7)
    red, green, blue = recorded(grey, full_well=2_000, red_noise=2.0, blue_noise=1.5).std((1, 2)).tolist()
    assert abs(red / green - 2.0) < 0.1 and abs(blue / green - 1.5) < 0.1
