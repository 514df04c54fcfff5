"""The defocus estimator."""

from __future__ import annotations

import torch

from bundle.prompts.defocus import DefocusEstimator


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
