"""What the camera adds."""

from __future__ import annotations

import pytest
import torch

from bundle.optics.camera import MOSAICS, Camera, demosaicked, record, smoothed
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


@pytest.mark.parametrize("mosaic", list(MOSAICS))
@pytest.mark.parametrize("size", [(40, 52), (7, 9), (1, 5), (1, 1)])
def test_a_bayer_camera_keeps_what_is_smooth_and_every_pixel_that_it_sees(mosaic: str, size: tuple[int, int]) -> None:
    """A kernel in the wrong phase would swap red and blue in every other row."""
    flat = torch.tensor([0.7, 0.4, 0.2])[:, None, None].expand(3, *size)
    assert torch.allclose(demosaicked(flat, mosaic), flat, atol=1e-6) or min(size) == 1
    light = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    made = demosaicked(light, mosaic)
    assert torch.equal(made[0, ::2, ::2], light[0, ::2, ::2]) and torch.equal(made[2, 1::2, 1::2], light[2, 1::2, 1::2])
    assert torch.equal(made[1, ::2, 1::2], light[1, ::2, 1::2]) and torch.equal(made[1, 1::2, ::2], light[1, 1::2, ::2])


def test_a_bayer_camera_smooths_the_noise_of_red_and_blue() -> None:
    """On the real pairs of planes their noise falls by 12 dB towards the finest detail, and neither is the other's."""
    grey = torch.full((3, 256, 256), 0.7)
    noise = recorded(grey, full_well=2_000, mosaic="bilinear")
    powers = torch.fft.fft2(noise - noise.mean((1, 2), keepdim=True)).abs().square()
    coarse, fine = powers[:, 4:20, 4:20].mean((1, 2)), powers[:, 110:146, 110:146].mean((1, 2))
    assert (coarse / fine)[[0, 2]].min() > 10
    red, blue = (noise - noise.mean((1, 2), keepdim=True))[[0, 2]].flatten(1)
    assert abs(float((red * blue).mean() / red.std() / blue.std())) < 0.1
