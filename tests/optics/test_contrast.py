"""The contrast value against its known answers on a real section."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bundle.optics.contrast import contrast_value
from bundle.optics.pupil import Optics, gain_profile, on_image_grid

STEPS_UM = torch.arange(7) * 0.8
STAGE = torch.tensor([1, 0.720, 0.284, 0.074, 0.004, -0.005, 0.003])
GLASS = torch.tensor([1, 0.892, 0.634, 0.363, 0.171, 0.063, 0.006])


def blurred(section: Tensor, optics: Optics, medium: str) -> Tensor:
    """The section at 0, 0.8, ... 4.8 µm of defocus, (7, 3, H, W), linear in its values."""
    zero = torch.zeros(7)
    stage, depth = (STEPS_UM, zero) if medium == "stage" else (zero, STEPS_UM)
    gains = on_image_grid(gain_profile(optics, stage, depth), *section.shape[-2:])
    return torch.fft.irfft2(torch.fft.rfft2(section) * gains, s=section.shape[-2:])


@pytest.mark.parametrize("noise", [0.0, 2 / 255])
@pytest.mark.parametrize(("medium", "known"), [("stage", STAGE), ("glass", GLASS)])
def test_contrast_of_a_real_section_is_the_known_one(section: Tensor, green: Optics, medium: str, known: Tensor,
                                                     noise: float) -> None:
    """The golden figures of the method, with and without noise: contrast is half of what the estimator learns."""
    planes = blurred(section, green, medium)
    planes = planes + noise * torch.randn(planes.shape, generator=torch.Generator().manual_seed(0))
    value = contrast_value(planes, section.expand_as(planes), 0.25, clip=False)
    assert torch.allclose(value, known, atol=0.01)


def test_contrast_is_clipped_only_when_asked(section: Tensor, green: Optics) -> None:
    """A label below 0 or above 1 cannot be reached by a head that ends in a sigmoid."""
    planes = torch.cat([blurred(section, green, "stage"), 1.5 * section[None]])
    value = contrast_value(planes, section.expand_as(planes), 0.25)
    assert float(value.min()) == 0 and float(value.max()) == 1


def test_an_empty_patch_has_no_contrast_and_its_neighbours_keep_theirs(section: Tensor) -> None:
    """Glass would otherwise be labelled with the contrast of its noise."""
    planes = torch.stack([torch.full((3, 64, 96), 0.95), section[:, 100:164, 100:196]])
    value = contrast_value(planes, planes, 0.25)
    assert bool(value[0].isnan()) and float(value[1]) == pytest.approx(1)


def test_contrast_does_not_see_its_batch(section: Tensor, green: Optics) -> None:
    """A label that depends on the batch cannot be repeated."""
    planes = blurred(section, green, "glass")[1:4, :, 40:160, 60:200]
    sharp = section[:, 40:160, 60:200].expand_as(planes)
    mpp = torch.tensor([0.25, 0.5, 0.35])
    alone = [contrast_value(planes[k:k + 1], sharp[k:k + 1], float(mpp[k])) for k in range(3)]
    assert torch.allclose(contrast_value(planes, sharp, mpp), torch.cat(alone), atol=1e-5)


def test_half_the_detail_is_contrast_one_half(section: Tensor) -> None:
    """The definition itself: least-squares gain, free of a shift in brightness."""
    halved = 0.5 * section + 0.2
    assert float(contrast_value(halved[None], section[None], 0.25)) == pytest.approx(0.5, abs=1e-4)


def test_planes_of_another_size_are_refused(section: Tensor) -> None:
    """Broadcasting would compare a plane with the wrong reference."""
    with pytest.raises(ValueError, match="one shape"):
        contrast_value(section[None], section[None, :, :-1], 0.25)
