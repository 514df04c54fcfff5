"""Signs of doubt on tiles whose error is known by construction."""

import pytest
import torch

from bundle.optics.camera import smoothed
from bundle.optics.focal_stack import defocus, to_linear, to_srgb
from bundle.restoration import Restoration
from bundle.trust.gauge import (
    MANY_SAMPLES,
    ONE_SAMPLE,
    TrustGauge,
    Weights,
    cell_side_px,
    noise_deviation,
    unsupported_edges,
)

HEIGHT, WIDTH = 96, 160


@pytest.fixture(scope="module")
def gauge() -> TrustGauge:
    return TrustGauge(0.25)


@pytest.fixture(scope="module")
def sharp() -> torch.Tensor:
    """Tissue-like texture, (3, H, W)."""
    noise = torch.randn(3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(3))
    return (0.6 + 0.5 * smoothed(noise, 1.5)).clamp(0, 1)


def restoration(restored: torch.Tensor, coarse: torch.Tensor, distance_um: torch.Tensor, contrast: float = 0.5,
                spread: torch.Tensor | None = None) -> Restoration:  # fmt: skip
    mean, contrasts = distance_um.mean().view(1), torch.tensor([contrast])
    return Restoration(restored[None], coarse[None], distance_um[None, None], mean, contrasts, {}, spread)


def recorded(gauge: TrustGauge, sharp: torch.Tensor, distance_um: torch.Tensor) -> torch.Tensor:
    return to_srgb(defocus(to_linear(sharp), distance_um, gauge.table))


def test_the_truth_explains_its_own_defocused_image(gauge: TrustGauge, sharp: torch.Tensor) -> None:
    """A perfect result that is called doubtful makes the map worthless; so does an error that it does not see."""
    distance = torch.linspace(1.0, 2.6, WIDTH).expand(HEIGHT, WIDTH)
    image = recorded(gauge, sharp, distance)
    invented = sharp.clone()
    # Coarse structure that is not in the input, on the right half alone.
    invented[:, :, 100:] = (invented[:, :, 100:] + 0.25 * torch.sin(torch.arange(60) / 5.0)).clamp(0, 1)
    layers = gauge.judge(image[None], restoration(sharp, sharp, distance)).layers[0]
    assert float(layers[0].max()) < 0.002
    layers = gauge.judge(image[None], restoration(invented, sharp, distance)).layers[0]
    assert float(layers[0, :, 130:].mean()) > 0.05 and float(layers[0, :, :40].max()) < 0.01


def test_noise_of_the_input_is_no_doubt(gauge: TrustGauge, sharp: torch.Tensor) -> None:
    """Every scan is noisy: without the allowance every result is doubtful."""
    distance = torch.full((HEIGHT, WIDTH), 2.0)
    noise = 0.03 * torch.randn(3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(5))
    image = recorded(gauge, sharp, distance) + noise
    assert noise_deviation(image) == pytest.approx(0.03, rel=0.1)
    assert noise_deviation(noise * 0 + torch.linspace(0, 1, WIDTH)) < 1e-6
    layers = gauge.judge(image[None], restoration(sharp, sharp, distance)).layers[0]
    assert float(layers[0].mean()) < 0.012


def test_only_edges_without_support_count(sharp: torch.Tensor) -> None:
    """Sharpening what is there is the task; drawing what is not there is the danger."""
    image, contrast = smoothed(sharp, 2.0)[None], torch.tensor([0.5])
    smooth = torch.full((1, 3, HEIGHT, WIDTH), 0.6)
    drawn = sharp.clone()
    drawn[:, 20:70, 118:122] = 0.0
    none = unsupported_edges(image, sharp[None], sharp[None], contrast)
    some = unsupported_edges(image, drawn[None], sharp[None], contrast)
    assert float(none.max()) == 0
    assert float(some[..., 120].max()) > 0.01 and float(some[..., :60].max()) < 1e-4
    # The input alone supports too, in proportion to the contrast that it has lost.
    weak = 0.6 + 0.3 * (image - 0.6)
    restored = 0.6 + 0.9 * (image - 0.6)
    assert float(unsupported_edges(weak, restored, smooth, torch.tensor([0.3])).max()) < 1e-4
    assert float(unsupported_edges(weak, restored, smooth, torch.tensor([0.9])).max()) > 1e-3


@pytest.mark.parametrize(("fallback", "expected"), [("coarse", 0.3), ("input", 0.9), ("", 0.5)])
def test_untrusted_places_get_the_fallback_and_the_others_stay(fallback: str, expected: float,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for the input's pixels must get them, and lose nothing where nothing is in doubt."""
    gauge = TrustGauge(0.25, fallback=fallback)
    flat = torch.ones(3, HEIGHT, WIDTH)
    spread = torch.zeros(1, 1, HEIGHT, WIDTH)
    spread[..., 80:] = 0.5
    made = restoration(0.5 * flat, 0.3 * flat, torch.zeros(HEIGHT, WIDTH), 0.5, spread)
    # Only the spread differs: the flat result explains nothing of the flat, brighter input, equally everywhere.
    for name in ("ONE_SAMPLE", "MANY_SAMPLES"):
        monkeypatch.setattr(f"bundle.trust.gauge.{name}", Weights(reblur=0.0, edges=0.0, spread=1.0))
    judged = gauge.judge(0.9 * flat[None], made)
    torch.testing.assert_close(judged.pixels[..., :40], torch.full((1, 3, HEIGHT, 40), 0.5))
    torch.testing.assert_close(judged.pixels[..., 120:], torch.full((1, 3, HEIGHT, 40), expected))
    assert float(judged.layers[0, 3, :, 120:].mean()) == (1.0 if fallback else 0.0)
    torch.testing.assert_close(gauge.doubt(judged.layers[:, :3]), 255 * judged.layers[:, 1])


def test_places_without_a_spread_are_judged_as_of_one_sample(gauge: TrustGauge, sharp: torch.Tensor) -> None:
    """Mild and hopeless tiles have no seeds to differ by: that no spread is seen there is no reason to trust them."""
    blurred = smoothed(sharp, 2.0)[None]
    made = restoration(sharp, sharp, torch.zeros(HEIGHT, WIDTH))
    spread = torch.zeros(1, 1, HEIGHT, WIDTH)
    spread[..., 80:] = 0.2  # a tile of the whole chain on the right, one of the P-former alone on the left
    signs = gauge.judge(blurred, made._replace(spread=spread)).layers[:, :3]
    doubt = gauge.doubt(signs)
    assert float(doubt[..., :40].mean()) > 1
    for weights, where in ((ONE_SAMPLE, slice(40)), (MANY_SAMPLES, slice(120, None))):
        expected = 255 * (signs * torch.tensor(weights).view(1, 3, 1, 1)).sum(1)
        torch.testing.assert_close(doubt[..., where], expected[..., where])


def test_values_out_of_range_are_refused() -> None:
    """A map with other rules than the user thinks is worse than none."""
    with pytest.raises(ValueError, match="fallback must be one of coarse, input, got truth"):
        TrustGauge(0.25, fallback="truth")
    with pytest.raises(ValueError, match=r"limit must be positive, got 0\.0"):
        TrustGauge(0.25, limit=0.0)
    assert [cell_side_px(px) for px in (1920, 2016, 96)] == [64, 32, 32]
    with pytest.raises(ValueError, match="multiple of 64 px"):
        cell_side_px(1900)
