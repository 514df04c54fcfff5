"""What training sees: each patch is a function of its own seed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bundle.optics.random_defocus import DefocusSimulator, SimulatedPatches, shifted

MPP = torch.tensor([0.25, 0.5, 0.25])
SEEDS = torch.tensor([11, 12, 13])


@pytest.fixture(scope="module")
def simulator() -> DefocusSimulator:
    return DefocusSimulator(margin_px=16, scanners=2, reach_um=3.2)


@pytest.fixture(scope="module")
def sharp(section: Tensor) -> Tensor:
    return torch.stack([section[:, row:row + 96, 200:296] for row in (0, 128, 256)])


@pytest.fixture(scope="module")
def patches(simulator: DefocusSimulator, sharp: Tensor) -> SimulatedPatches:
    return simulator(sharp, MPP, SEEDS)


def test_the_same_seed_gives_the_same_pixels_in_any_batch(simulator: DefocusSimulator, sharp: Tensor,
                                                          patches: SimulatedPatches) -> None:
    """A run resumed with another batch size would otherwise train on other data."""
    for order in ([2, 0], [1], [2, 1, 0]):
        part = simulator(sharp[order], MPP[order], SEEDS[order])
        assert torch.equal(part.image, patches.image[order])
        assert torch.equal(part.defocus_um, patches.defocus_um[order])
        assert torch.allclose(part.contrast, patches.contrast[order], atol=1e-5)


def test_another_seed_gives_another_plane(simulator: DefocusSimulator, sharp: Tensor,
                                          patches: SimulatedPatches) -> None:
    """Seeds that are ignored would train on one defocus for ever."""
    assert not torch.equal(simulator(sharp, MPP, SEEDS + 100).defocus_um, patches.defocus_um)


def test_the_label_is_the_centre_of_the_sharp_patch(sharp: Tensor, patches: SimulatedPatches) -> None:
    """A label off by the margin would teach a shift."""
    assert patches.image.shape == patches.label.shape == (3, 3, 64, 64)
    assert torch.equal(patches.label, sharp[..., 16:80, 16:80])


def test_labels_lie_in_their_ranges(patches: SimulatedPatches) -> None:
    """defocus within the stage's reach and the relief, contrast in [0, 1], pixels as a camera writes them."""
    assert float(patches.defocus_um.abs().max()) <= 3.2 + 1.0
    assert float(patches.contrast.min()) >= 0 and float(patches.contrast.max()) <= 1
    assert torch.allclose(patches.image * 255, (patches.image * 255).round(), atol=1e-3)


def test_an_oversampling_camera_sees_the_same_tissue_larger_and_no_finer_detail() -> None:
    """Cameras with pixels finer than their optics are common: their blur is wide, their noise is not."""
    sharp = torch.rand(6, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    mpp, seeds = torch.full((6,), 0.25), torch.arange(6)
    plain = DefocusSimulator(margin_px=16, scanners=2, reach_um=3.2)(sharp, mpp, seeds)
    drawn = DefocusSimulator(margin_px=16, scanners=2, reach_um=3.2, oversampling=(2.0, 2.0))(sharp, mpp, seeds)
    assert drawn.label.shape == plain.label.shape == (6, 3, 64, 96)
    halved = torch.nn.functional.avg_pool2d(drawn.label, 2)
    middle = plain.label[..., 16:48, 24:72]
    assert (halved - middle).abs().mean() < 0.4 * middle.std()
    spectrum = torch.fft.rfft2(drawn.label[:, :, 8:-8, 8:-8]).abs().mean((0, 1))
    assert spectrum[24, 40] < 0.05 * spectrum[6, 10]  # beyond and below the field's own finest detail
    standard = DefocusSimulator(margin_px=16, scanners=2, reach_um=3.2, oversampling=(2.0, 2.0), standard_share=1.0)
    assert torch.equal(standard(sharp, mpp, seeds).label, plain.label)


def test_a_second_layer_absorbs_its_share_and_has_a_distance_of_its_own(sharp: Tensor) -> None:
    """Cells upon cells: fine detail of one layer beside another far out of focus. A standard objective sees one."""
    seeds = torch.arange(3)
    plain = DefocusSimulator(margin_px=16, scanners=2, full_well=(1e6, 1e6), jpeg_quality=(98, 98))(sharp, MPP, seeds)
    settings = {"margin_px": 16, "scanners": 2, "full_well": (1e6, 1e6), "jpeg_quality": (98, 98)}
    drawn = DefocusSimulator(**settings, second_layer=(0.5, 0.5))(sharp, MPP, seeds)  # type: ignore[arg-type]
    assert torch.equal(drawn.defocus_um, plain.defocus_um)  # of the first layer
    turned = drawn.label.flip(-2, -1)
    assert torch.allclose(drawn.label, turned, atol=1e-3)  # at a half the two layers count the same
    assert not torch.allclose(drawn.image, drawn.image.flip(-2, -1), atol=0.05)  # but lie at two distances
    weak = DefocusSimulator(**settings, second_layer=(-0.4, -0.1))(sharp, MPP, seeds)  # type: ignore[arg-type]
    assert torch.equal(weak.label, sharp[..., 16:80, 16:80])
    standard = DefocusSimulator(**settings, second_layer=(0.5, 0.5), standard_share=1.0)  # type: ignore[arg-type]
    assert torch.equal(standard(sharp, MPP, seeds).label, plain.label)


def test_the_truth_of_two_layers_can_be_one_plane_of_them(sharp: Tensor) -> None:
    """On real pairs of planes the truth shows one plane: the first layer sharp, the second as it looks from there."""
    settings = {"margin_px": 16, "scanners": 2, "second_layer": (0.5, 0.5), "relief_um": (0.0, 0.0)}
    both = DefocusSimulator(**settings)(sharp, MPP, SEEDS)  # type: ignore[arg-type]
    one = DefocusSimulator(**settings, one_focus=1.0)(sharp, MPP, SEEDS)  # type: ignore[arg-type]
    detail = [patches.label.diff().abs().mean((1, 2, 3)) for patches in (both, one)]
    assert (detail[1] <= detail[0] + 1e-6).all() and (detail[1] < 0.95 * detail[0]).any()
    assert not torch.allclose(one.label, one.label.flip(-2, -1), atol=0.02)  # the first layer stays sharp
    assert torch.equal(one.defocus_um, both.defocus_um)


def test_a_good_camera_records_what_standard_objectives_show(sharp: Tensor) -> None:
    """The noise of a bad camera must not teach the network to leave detail out that a good one resolves."""
    settings = {"margin_px": 16, "scanners": 2, "full_well": (300.0, 300.0), "jpeg_quality": (65, 65)}
    bad = DefocusSimulator(**settings, standard_share=1.0)(sharp, MPP, SEEDS)  # type: ignore[arg-type]
    good = DefocusSimulator(**settings, standard_share=1.0, good_camera_share=1.0)(sharp, MPP, SEEDS)  # type: ignore[arg-type]
    clean = DefocusSimulator(**{**settings, "full_well": (1e6, 1e6), "jpeg_quality": (98, 98)},
                             standard_share=1.0)(sharp, MPP, SEEDS)  # type: ignore[arg-type]
    errors = [(patches.image - clean.image).square().mean((1, 2, 3)) for patches in (bad, good)]
    assert (errors[1] < errors[0] / 3).all()
    assert torch.equal(good.defocus_um, bad.defocus_um) and torch.equal(good.label, bad.label)
    drawn = [DefocusSimulator(**settings, good_camera_share=share)(sharp, MPP, SEEDS) for share in (0.0, 1.0)]  # type: ignore[arg-type]
    assert torch.equal(drawn[0].image, drawn[1].image)


def test_parallax_moves_the_truth_behind_a_drawn_objective_and_not_in_focus(sharp: Tensor) -> None:
    """Two planes of a real specimen are not in register; a patch in focus is its own truth."""
    settings = {"margin_px": 16, "scanners": 2, "reach_um": 4.0}
    plain = DefocusSimulator(**settings)(sharp, MPP, SEEDS)  # type: ignore[arg-type]
    moved = DefocusSimulator(**settings, parallax=(0.3, 0.3))(sharp, MPP, SEEDS)  # type: ignore[arg-type]
    below = DefocusSimulator(**settings, parallax=(-0.3, -0.1))(sharp, MPP, SEEDS)  # type: ignore[arg-type]
    assert torch.equal(below.label, plain.label) and not torch.equal(moved.label, plain.label)
    standard = DefocusSimulator(**settings, parallax=(0.3, 0.3), standard_share=1.0)  # type: ignore[arg-type]
    assert torch.equal(standard(sharp, MPP, SEEDS).label, plain.label)
    focused = DefocusSimulator(**{**settings, "reach_um": 0.0}, parallax=(0.3, 0.3))(sharp, MPP, SEEDS)  # type: ignore[arg-type]
    assert torch.equal(focused.label, sharp[..., 16:80, 16:80])


def test_a_shift_has_the_deviation_that_is_asked_for() -> None:
    """Measured on a ramp, whose values tell where each pixel came from."""
    ramp = torch.linspace(0, 1, 512).expand(3, 512, 512).contiguous()
    moves = torch.cat([(shifted(ramp, 2.0, torch.Generator().manual_seed(seed)) - ramp)[0, 64:-64, 64:-64] * 511
                       for seed in range(8)])  # fmt: skip
    assert moves.std().isclose(torch.tensor(2.0), rtol=0.15)
    assert moves.diff().abs().max() < 0.3  # smooth
