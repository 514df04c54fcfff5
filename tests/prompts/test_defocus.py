"""The defocus estimator."""

from __future__ import annotations

import torch

from bundle.prompts.defocus import DefocusEstimator, Reading


def tiny() -> DefocusEstimator:
    torch.manual_seed(0)
    return DefocusEstimator((1, 1, 1, 1), (8, 8, 16, 24)).eval()


def test_the_paper_size_has_resnet_34s_parameters_and_keys() -> None:
    """ImageNet's or anybody's ResNet-34 weights must load: 21,284,672 without the classifier, torchvision's names."""
    network = DefocusEstimator()
    assert sum(p.numel() for p in network.backbone.parameters()) == 21_284_672
    assert {"conv1.weight", "layer2.0.downsample.0.weight", "layer4.2.bn2.bias"} <= set(network.backbone.state_dict())


def test_the_distance_is_the_mean_of_the_focus_map_it_comes_from() -> None:
    """Figure 4 of the paper shows the same head at every position; two heads would tell two stories."""
    network, image = tiny(), torch.rand(2, 3, 96, 160)
    estimate = network(image)
    positions = network.map_of(estimate.prompt, estimate.prompt.shape[-2:])
    assert estimate.prompt.shape == (2, 24, 3, 5)
    assert torch.allclose(positions.mean((1, 2, 3)), estimate.defocus_um, atol=1e-5)
    assert network.focus_map(image).shape == (2, 1, 96, 160)


def test_a_faint_tile_is_not_stretched_to_full_contrast() -> None:
    """Normalising each tile by its own range would take away the very blur that is to be measured."""
    network = tiny()
    image = torch.rand(1, 3, 64, 64)
    faint = 0.5 + 0.1 * (image - 0.5)
    assert not torch.allclose(network(image).prompt, network(faint).prompt, atol=1e-3)


def test_untrained_spectra_change_nothing_and_trained_ones_reach_every_position() -> None:
    """The spectra are an addition to the paper's estimator; it must start as that, and then be read."""
    plain = tiny()
    torch.manual_seed(1)
    reading = DefocusEstimator((1, 1, 1, 1), (8, 8, 16, 24), frequencies=8).eval()
    reading.load_state_dict({**reading.state_dict(), **plain.state_dict()})
    image = torch.rand(2, 3, 96, 160)
    assert torch.allclose(reading(image).prompt, plain(image).prompt)
    torch.nn.init.normal_(reading.reader.layers[-1].weight)
    assert bool(((reading(image).prompt - plain(image).prompt).abs().amax(1) > 1e-3).all())


def test_the_reader_alone_says_what_the_whole_estimator_says() -> None:
    """Stage 1b trains on what was seen and kept; used on an image the same weights must say the same."""
    torch.manual_seed(2)
    estimator = DefocusEstimator((1, 1, 1, 1), (8, 8, 16, 24), frequencies=8).eval()
    torch.nn.init.normal_(estimator.reader.layers[-1].weight)
    image = torch.rand(2, 3, 96, 64)
    features, spectra = estimator.seen(image)
    kept, whole = Reading(estimator)(features, spectra), estimator(image)
    assert all(torch.equal(a, b) for a, b in zip(kept, whole, strict=True))
