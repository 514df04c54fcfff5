"""The losses."""

from __future__ import annotations

import pytest
import torch

from bundle.prompts.compact_encoder import CompactEncoder
from bundle.prompts.defocus import DefocusEstimate
from bundle.training.objectives import (
    DefocusLoss,
    MaskedAutoencoder,
    QuantileLoss,
    RestorationLoss,
    TextureDistance,
)


def test_equation_1_counts_contrast_only_where_it_is_defined() -> None:
    """Empty patches have no contrast; a NaN among the labels would end the training."""
    estimate = DefocusEstimate(torch.zeros(2, 1, 1, 1), torch.tensor([1.0, -1.0]), torch.tensor([0.5, 0.9]))
    target = torch.tensor([[2.0, 0.7], [-1.5, float("nan")]])
    assert float(DefocusLoss()(estimate, target)) == pytest.approx(0.75 + 0.2)


def test_losses_are_zero_for_the_truth_and_grow_with_the_error() -> None:
    """A loss that does not vanish at the truth pulls the restoration away from it."""
    torch.manual_seed(0)
    truth = torch.rand(1, 3, 64, 64)
    noise = 0.1 * torch.randn_like(truth)
    for options in ({"pixel": "l1"}, {"pixel": "l2"}, {"frequency_weight": 0.1}, {"texture_weight": 1.0},
                    {"ssim_weight": 1.0}, {"weave_weight": 1.0}):  # fmt: skip
        loss = RestorationLoss(**options)  # type: ignore[arg-type]
        errors = [float(loss(truth + scale * noise, truth)) for scale in (0, 1, 2)]
        assert errors[0] < 1e-6 < errors[1] < errors[2]


def grain(period_px: float, seed: int) -> torch.Tensor:
    """Noise of 8 grey levels about one period, alike in every direction, (1, 3, 128, 128)."""
    radius = sum(axis.square() for axis in torch.meshgrid(*[torch.fft.fftfreq(128)] * 2, indexing="ij")).sqrt()
    noise = torch.fft.fft2(torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(seed)))
    shaped = torch.fft.ifft2(noise * torch.exp(-((radius * period_px - 1) ** 2) * 8)).real
    return 0.5 + shaped / shaped.std() * 8 / 255


@pytest.mark.parametrize("distance", [TextureDistance((32,)), TextureDistance()])
def test_texture_is_told_by_its_spectrum_not_by_its_places(distance: TextureDistance) -> None:
    """The same grain elsewhere is nearer than none, half of it, a coarser one, or a weave of the same strength."""
    truth, flat = grain(5, 0), torch.full((1, 3, 128, 128), 0.5)
    rows, columns = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    weave = flat + torch.sin(2 * torch.pi * (rows + columns) * 0.2 / 2**0.5) * 2**0.5 * 8 / 255
    elsewhere = float(distance(grain(5, 1), truth))
    for other in (flat, grain(8, 1), weave):
        assert float(distance(other, truth)) > 1.3 * elsewhere
    # Half of it lies in its place: what small windows see, so that it costs less there.
    assert float(distance((truth + flat) / 2, truth)) > (1.3 if distance.windows_px == (32,) else 1.2) * elsewhere
    assert float(distance(truth, truth)) == 0
    assert float(distance(flat + 0.1, flat)) < 1e-3  # brightness is the pixel loss's affair


def test_small_windows_tell_the_place_of_texture() -> None:
    """Half of a detail in its place costs more than all of it elsewhere, the more the larger the windows."""
    truth = grain(5, 0)
    half = (truth + 0.5) / 2
    fine, coarse = (float(distance(half, truth) / distance(grain(5, 1), truth))
                    for distance in (TextureDistance(), TextureDistance((32,))))
    assert fine < 0.9 * coarse


@pytest.mark.parametrize("windows_px", [(), (8, 15), (2,)])
def test_texture_refuses_windows_that_it_cannot_lay(windows_px: tuple[int, ...]) -> None:
    """A typing error in a config should say so, not fail inside an FFT after the first batch."""
    with pytest.raises(ValueError, match="windows of texture must be even and 4 px or more, got"):
        RestorationLoss("l2", texture_weight=1.0, texture_windows_px=windows_px)


def test_texture_is_of_each_patch_alone() -> None:
    """What else is in the batch must not matter."""
    images, targets = torch.cat([grain(5, 0), grain(6, 1)]), torch.cat([grain(5, 2), grain(4, 3)])
    alone = [float(TextureDistance()(images[i:i + 1], targets[i:i + 1])) for i in range(2)]
    assert float(TextureDistance()(images, targets)) == pytest.approx(sum(alone) / 2, rel=1e-5)


def test_a_pattern_of_the_grid_costs_far_more_than_noise_of_its_strength() -> None:
    """The squared error sees both alike, and a network that folds pixels draws the pattern more easily."""
    loss, truth = RestorationLoss("l2", weave_weight=200), grain(8, 0)
    pattern = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    pattern = (pattern - pattern.mean((2, 3), keepdim=True)) / pattern.std() / 255
    noise = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(2)) * pattern.std()
    drawn, noisy = (float(loss(truth + error, truth)) for error in (pattern.repeat(1, 1, 32, 32), noise))
    assert drawn > 50 * noisy
    assert float(RestorationLoss("l2", weave_weight=200)(truth + 0.1, truth)) == pytest.approx(0.04)  # no colour


def test_the_squared_error_lives_on_minus_one_to_one() -> None:
    """Equation 5 is on P-diffusion's range: an error of 0.1 in [0, 1] is 0.2 there."""
    image = torch.zeros(1, 3, 4, 4)
    assert float(RestorationLoss("l2")(image + 0.1, image)) == pytest.approx(0.04)


def test_the_autoencoder_scores_hidden_patches_only_and_by_seed() -> None:
    """Scoring visible patches would reward copying; a mask that changes with the run would not repeat."""
    torch.manual_seed(0)
    network = MaskedAutoencoder(CompactEncoder(16, 1, 4)).eval()
    image, seeds = torch.rand(2, 3, 64, 64), torch.tensor([1, 2])
    assert torch.equal(network(image, seeds), network(image, seeds))
    assert not torch.equal(network(image, seeds), network(image, seeds + 5))
    assert network(image, seeds).shape == (2,)


def test_the_root_mean_square_is_of_each_patch() -> None:
    """Of all patches together it would be the squared error again: ruled by what is far out of focus."""
    loss, truth = RestorationLoss("rmse"), torch.zeros(2, 3, 8, 8)
    image = truth + torch.tensor([0.1, 0.3])[:, None, None, None]
    assert float(loss(image, truth)) == pytest.approx(0.2, abs=1e-4)


def test_the_psnr_loss_weighs_patches_in_decibels() -> None:
    """Halving a small error must count as much as halving a large one: both are 6 dB."""
    loss, truth = RestorationLoss("psnr"), torch.zeros(1, 3, 8, 8)
    for error in (0.1, 0.4):
        gain = float(loss(truth + error, truth) - loss(truth + error / 2, truth))
        assert gain == pytest.approx(0.0602, abs=5e-4)


def test_the_quantile_loss_is_least_at_the_quantile() -> None:
    """With the sign turned the reader would see oversampling everywhere in doubt, and throw detail away."""
    truths = torch.linspace(0, 1, 101)
    losses = [float(QuantileLoss(0.3)(torch.full_like(truths, guess), truths)) for guess in (0.1, 0.2, 0.3, 0.4, 0.7)]
    assert min(losses) == losses[2]
    with pytest.raises(ValueError, match="quantile must lie between 0 and 1, got 1"):
        QuantileLoss(1.0)
