"""The figures of every table rest on these functions: they must agree with the trusted libraries."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn
from torch.nn import functional as F

from bundle.training.metrics import (
    Fire,
    SqueezeLpips,
    colour_shift,
    defocus_figures,
    load_lpips,
    psnr,
    ssim,
    ssim_uniform,
)

OFFLINE_LPIPS = Path(__file__).parents[2].parent / "shared" / "lpips_squeeze"


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    """Two images with structure at several scales and different distances to their targets, (2, 3, 48, 61)."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(2, 3, 6, 8, generator=generator)
    target = F.interpolate(coarse, size=(48, 61), mode="bicubic").clamp(0, 1)
    noise = torch.randn(target.shape, generator=generator) * torch.tensor([0.02, 0.15]).view(2, 1, 1, 1)
    return (target + noise).clamp(0, 1), target


def channels_last(image: Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).double().numpy()


def test_psnr_agrees_with_scikit_image(pair: tuple[Tensor, Tensor]) -> None:
    """A PSNR of another data range or mean would make the tables incomparable with every paper."""
    prediction, target = pair
    expected = [
        peak_signal_noise_ratio(channels_last(t), channels_last(p), data_range=1)
        for p, t in zip(prediction, target, strict=True)
    ]
    assert psnr(prediction, target).tolist() == pytest.approx(expected, abs=1e-4)
    assert psnr(torch.full((1, 3, 2, 2), 0.6), torch.full((1, 3, 2, 2), 0.5)).item() == pytest.approx(20, abs=1e-4)


def test_a_perfect_image_has_a_finite_psnr(pair: tuple[Tensor, Tensor]) -> None:
    """Infinity in one plane would make the mean over planes infinite and summary.json unreadable."""
    assert psnr(pair[1], pair[1]).tolist() == pytest.approx([100, 100])


def test_both_ssim_windows_agree_with_scikit_image(pair: tuple[Tensor, Tensor]) -> None:
    """SSIM differs in the second digit between windows: a wrong one would fake or hide a gain."""
    prediction, target = pair
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    for measure, options in ((ssim, gaussian), (ssim_uniform, {})):
        expected = [
            structural_similarity(channels_last(p), channels_last(t), data_range=1, channel_axis=2, **options)
            for p, t in zip(prediction, target, strict=True)
        ]
        assert measure(prediction, target).tolist() == pytest.approx(expected, abs=1e-4)


def test_ssim_agrees_with_monai(pair: tuple[Tensor, Tensor]) -> None:
    """MONAI's key metric in a trainer and the table's figure must be the same number."""
    regression = pytest.importorskip("monai.metrics.regression")
    metric = regression.SSIMMetric(spatial_dims=2, data_range=1.0, win_size=11, kernel_sigma=1.5)
    assert ssim(*pair).tolist() == pytest.approx(metric(*pair).flatten().tolist(), abs=1e-4)


def test_an_image_does_not_change_the_figures_of_its_batch(pair: tuple[Tensor, Tensor]) -> None:
    """A figure averaged over the batch would give every image of a validation batch the same score."""
    prediction, target = pair
    for measure in (psnr, ssim, ssim_uniform):
        alone = torch.cat([measure(prediction[i : i + 1], target[i : i + 1]) for i in range(2)])
        torch.testing.assert_close(measure(prediction, target), alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("measure", [psnr, ssim, ssim_uniform, colour_shift])
def test_images_of_different_sizes_are_refused(measure: object) -> None:
    """Broadcasting a 1-px image against a field would give a figure without meaning."""
    with pytest.raises(ValueError, match="must agree in shape"):
        measure(torch.rand(1, 3, 1, 1), torch.rand(1, 3, 32, 32))  # type: ignore[operator]


def test_an_image_below_the_window_is_refused() -> None:
    """An empty mean is NaN, and a NaN in one field empties the whole table."""
    with pytest.raises(ValueError, match="at least 11 x 11 px, got"):
        ssim(torch.rand(1, 3, 10, 40), torch.rand(1, 3, 10, 40))


def test_colour_shift_sees_the_mean_of_a_block_and_not_its_detail() -> None:
    """It is what tells a colour cast from added sharpness."""
    source = torch.full((1, 3, 128, 192), 0.5)
    checker = (torch.arange(128).view(-1, 1) + torch.arange(192)) % 2 * 0.2 - 0.1
    assert colour_shift(source + checker, source).max() < 1e-3
    tinted = source.clone()
    tinted[:, 0, :64, 64:128] += 10 / 255
    shift = colour_shift(tinted, source)
    assert shift.shape == (1, 3, 2, 3)
    assert shift[0, 0, 0, 1].item() == pytest.approx(10, abs=1e-3)
    assert shift.sum().item() == pytest.approx(10, abs=1e-2)


def test_defocus_figures_have_their_known_values() -> None:
    """Z-accuracy decides whether the estimator may choose which tiles to leave untouched."""
    true_um = torch.tensor([0.0, 0.8, -1.6, 2.4])
    predicted_um = torch.tensor([-0.1, 1.1, 0.4, 1.9])
    contrast, true_contrast = torch.tensor([0.9, 0.5, 0.2, 0.1]), torch.tensor([1.0, 0.3, math.nan, 0.1])
    figures = defocus_figures(predicted_um, true_um, contrast, true_contrast)
    assert figures.mae_um == pytest.approx((0.1 + 0.3 + 2.0 + 0.5) / 4)
    assert figures.z_accuracy == pytest.approx(0.5)
    assert figures.sign_accuracy == pytest.approx(2 / 3)
    assert figures.contrast_mae == pytest.approx(0.1)
    assert figures.tiles == 4


def write_weights(folder: Path) -> None:
    """Random weights in the published files' naming."""
    torch.manual_seed(0)
    sizes = {3: (64, 16, 64), 4: (128, 16, 64), 6: (128, 32, 128), 7: (256, 32, 128), 9: (256, 48, 192)}
    sizes |= {10: (384, 48, 192), 11: (384, 64, 256), 12: (512, 64, 256)}
    backbone = {f"0.{name}": value for name, value in nn.Conv2d(3, 64, 3, stride=2).state_dict().items()}
    for place, size in sizes.items():
        backbone |= {f"{place}.{name}": value for name, value in Fire(*size).state_dict().items()}
    widths = (64, 128, 256, 384, 384, 512, 512)
    torch.save(backbone, folder / "squeeze.backbone.pth")
    torch.save(
        {f"lin{i}.model.1.weight": torch.rand(1, w, 1, 1) for i, w in enumerate(widths)}, folder / "squeeze.linear.pth"
    )


def test_lpips_is_zero_for_equal_images_and_does_not_see_the_batch(tmp_path: Path) -> None:
    """The two halves run as one batch: a mix-up would compare a field with another field's truth."""
    write_weights(tmp_path)
    distance = load_lpips(tmp_path).distance
    assert distance is not None
    generator = torch.Generator().manual_seed(1)
    first, second = torch.rand(2, 3, 40, 52, generator=generator), torch.rand(2, 3, 40, 52, generator=generator)
    assert distance(first, first).abs().max() < 1e-6
    both = distance(first, second)
    torch.testing.assert_close(both, torch.cat([distance(first[i : i + 1], second[i : i + 1]) for i in range(2)]))
    torch.testing.assert_close(both, distance(second, first))
    assert both.min() > 0


def test_lpips_refuses_a_folder_without_its_files(tmp_path: Path) -> None:
    """A mistyped folder must not end as a dash in the table."""
    with pytest.raises(FileNotFoundError, match=r"needs the file squeeze\.backbone\.pth"):
        load_lpips(tmp_path)
    with pytest.raises(ValueError, match="must be alex, vgg or squeeze, got resnet"):
        load_lpips(None, "resnet")


def test_missing_lpips_is_said_and_not_faked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without the package reports a dash with its reason, never a figure."""
    monkeypatch.setitem(__import__("sys").modules, "lpips", None)
    lpips = load_lpips(None, "alex")
    assert lpips.distance is None
    assert lpips.name == "LPIPS (alex)"
    assert lpips.missing.startswith("LPIPS (alex) was not measured: the package lpips")


@pytest.mark.skipif(not OFFLINE_LPIPS.exists(), reason="the offline LPIPS weights are not beside this checkout")
def test_lpips_gives_its_published_value() -> None:
    """0.1008 on this noise is the value published with the offline weights: another number is another network."""
    torch.manual_seed(123)
    first, second = torch.rand(10, 3, 100, 100), torch.rand(10, 3, 100, 100)
    assert SqueezeLpips(OFFLINE_LPIPS)(first, second).mean().item() == pytest.approx(0.1008, abs=1e-4)
