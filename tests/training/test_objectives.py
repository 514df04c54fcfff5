"""The losses."""

from __future__ import annotations

import pytest
import torch

from bundle.prompts.compact_encoder import CompactEncoder
from bundle.prompts.defocus import DefocusEstimate, DefocusEstimator
from bundle.training.objectives import DefocusLoss, FeatureDistance, MaskedAutoencoder, RestorationLoss


def test_equation_1_counts_contrast_only_where_it_is_defined() -> None:
    """Empty patches have no contrast; a NaN among the labels would end the training."""
    estimate = DefocusEstimate(torch.zeros(2, 1, 1, 1), torch.tensor([1.0, -1.0]), torch.tensor([0.5, 0.9]))
    target = torch.tensor([[2.0, 0.7], [-1.5, float("nan")]])
    assert float(DefocusLoss()(estimate, target)) == pytest.approx(0.75 + 0.2)


def test_losses_are_zero_for_the_truth_and_grow_with_the_error() -> None:
    """A loss that does not vanish at the truth pulls the restoration away from it."""
    torch.manual_seed(0)
    features = FeatureDistance(DefocusEstimator((1, 1, 1, 1), (8, 8, 8, 8)))
    truth = torch.rand(1, 3, 64, 64)
    noise = 0.1 * torch.randn_like(truth)
    for options in ({"pixel": "l1"}, {"pixel": "l2"}, {"frequency_weight": 0.1}, {"feature_weight": 1.0}):
        loss = RestorationLoss(features=features, **options)  # type: ignore[arg-type]
        errors = [float(loss(truth + scale * noise, truth)) for scale in (0, 1, 2)]
        assert errors[0] < 1e-6 < errors[1] < errors[2]
    assert not list(features.parameters())


def test_features_see_every_patch_in_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Always alike on the pixels, they taught P-diffusion weaves that no other term punished."""
    estimator = DefocusEstimator((1, 1, 1, 1), (8, 8, 8, 8))
    distance, looked_at = FeatureDistance(estimator), []
    stages = estimator.stages
    monkeypatch.setattr(estimator, "stages", lambda image: (looked_at.append(image.detach()), stages(image))[1])
    wave = torch.sin(2 * torch.pi * 0.2 * torch.arange(96)).expand(3, 64, 96)
    target = torch.stack([mean + 0.2 * wave for mean in torch.linspace(0.3, 0.7, 40)])
    together = distance(target * 0.9, target)
    assert torch.allclose(looked_at[0], looked_at[1] * 0.9, atol=1e-5)  # image and target are seen alike
    waves = (looked_at[1] - looked_at[1].mean((2, 3), keepdim=True))[:, 0]
    waves = waves * torch.hann_window(64)[:, None] * torch.hann_window(96)
    spectra = torch.fft.rfft2(waves, s=(256, 256)).abs().flatten(1).argmax(1)
    rows, columns = torch.fft.fftfreq(256)[spectra // 129], torch.fft.rfftfreq(256)[spectra % 129]
    periods, directions = (rows.square() + columns.square()).rsqrt(), torch.atan2(rows, columns).rad2deg()
    assert 4.8 < periods.min() < 5.4 and 7.2 < periods.max() < 8.4  # 5 px, enlarged 1 to 1.6 times
    assert all(((directions > low) & (directions < low + 45)).any() for low in (-90, -45, 0, 45))
    alone = torch.stack([distance(one[None] * 0.9, one[None]) for one in target]).mean()
    assert float(together) == pytest.approx(float(alone), rel=1e-4)  # a patch is seen alike in every batch


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
