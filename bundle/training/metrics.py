"""What is measured: fidelity of an image to its sharp truth, and how well defocus is read off a tile.

    prediction, target   (B, 3, H, W) RGB in [0, 1], data range 1
    figure               one number per image, (B,)

PSNR and SSIM agree with scikit-image to 1e-4 (tests/training/test_metrics.py). They are written here because they run
on the training device, per image, with both windows in use; MONAI has no uniform window with the sample covariance.
LPIPS: Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric"; see `load_lpips`.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bundle.conventions import SPACING_UM, check_image

# An MSE of 1e-10 is below what float32 images of range 1 resolve. The floor keeps a perfect image at 100 dB instead of
# infinity, which would swallow every mean and is no valid JSON.
MSE_FLOOR = 1e-10
STABILITY = (0.01**2, 0.03**2)  # c1, c2 of Wang et al. 2004 at data range 1


def psnr(prediction: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, (B,), at most 100.

    Raises:
        ValueError: the two differ in shape or are no RGB batches.
    """
    _check_pair(prediction, target)
    mse = (prediction.float() - target.float()).square().mean(dim=(1, 2, 3))
    return -10 * mse.clamp_min(MSE_FLOOR).log10()


def ssim(prediction: Tensor, target: Tensor) -> Tensor:
    """Structural similarity with the Gaussian window of the paper (11 px, sigma 1.5), mean over RGB, (B,).

    Source: Wang et al. 2004; scikit-image's with `gaussian_weights=True, sigma=1.5, use_sample_covariance=False`.

    Raises:
        ValueError: the two differ in shape, are no RGB batches, or are smaller than the window.
    """
    offset = torch.arange(11, dtype=torch.float32) - 5
    window = torch.exp(-offset.square() / (2 * 1.5**2))
    return _ssim(prediction, target, window / window.sum(), covariance_scale=1.0)


def ssim_uniform(prediction: Tensor, target: Tensor) -> Tensor:
    """Structural similarity with scikit-image's default window, a uniform 7 x 7 with the sample covariance, (B,).

    Raises:
        ValueError: the two differ in shape, are no RGB batches, or are smaller than the window.
    """
    return _ssim(prediction, target, torch.full((7,), 1 / 7), covariance_scale=49 / 48)


def _ssim(prediction: Tensor, target: Tensor, window: Tensor, covariance_scale: float) -> Tensor:
    """SSIM with a separable window (K,) that sums to 1, over the pixels whose window lies inside the image, (B,)."""
    _check_pair(prediction, target)
    size = window.numel()
    if min(target.shape[-2:]) < size:
        raise ValueError(f"SSIM needs images of at least {size} x {size} px, got {tuple(target.shape[-2:])}.")
    x, y = prediction.float(), target.float()
    maps = torch.cat([x, y, x * x, y * y, x * y], dim=1)  # (B, 15, H, W)
    kernel = window.to(maps).repeat(maps.shape[1], 1, 1, 1)  # (15, 1, 1, K)
    maps = F.conv2d(F.conv2d(maps, kernel, groups=15), kernel.transpose(-1, -2), groups=15)
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = maps.chunk(5, dim=1)
    variance = covariance_scale * (mean_xx - mean_x.square() + mean_yy - mean_y.square())
    covariance = covariance_scale * (mean_xy - mean_x * mean_y)
    c1, c2 = STABILITY
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    return (luminance * (2 * covariance + c2) / (variance + c2)).mean(dim=(1, 2, 3))


def _check_pair(prediction: Tensor, target: Tensor) -> None:
    check_image(target)
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction and target must agree in shape, got {tuple(prediction.shape)} and {tuple(target.shape)}."
        )


def colour_shift(prediction: Tensor, source: Tensor, block_px: int = 64) -> Tensor:
    """How far the mean colour of every block moved, in grey levels of 255, (B, 3, h, w).

    Defocus leaves the local mean unchanged, so a restoration must, too. Blocks that reach past the image are left out;
    an image smaller than a block is one block.

    Raises:
        ValueError: the two differ in shape or are no RGB batches.
    """
    _check_pair(prediction, source)
    size = (min(block_px, source.shape[-2]), min(block_px, source.shape[-1]))
    return F.avg_pool2d(prediction.float() - source.float(), size).abs() * 255


class DefocusFigures(NamedTuple):
    """How well distance and sign are read off tiles; NaN where nothing was there to measure."""

    mae_um: float
    z_accuracy: float  # share of tiles with |predicted - true| below half a plane
    sign_accuracy: float  # among the tiles at least half a plane out of focus
    contrast_mae: float
    tiles: int


def defocus_figures(
    predicted_um: Tensor,
    true_um: Tensor,
    predicted_contrast: Tensor | None = None,
    true_contrast: Tensor | None = None,
    spacing_um: float = SPACING_UM,
) -> DefocusFigures:
    """MAE, Z-accuracy and sign accuracy of signed distances (N,) in µm, and the MAE of the contrast value (N,).

    An undefined contrast is NaN and is left out. The sign counts only from half a plane on: nearer to focus there is
    no sign to be seen.

    Raises:
        ValueError: the numbers of predictions and truths differ, or there are none.
    """
    if predicted_um.shape != true_um.shape or predicted_um.numel() == 0:
        raise ValueError(
            f"defocus needs as many predictions as truths, got {predicted_um.numel()} and {true_um.numel()}."
        )
    error = (predicted_um - true_um).abs()
    out_of_focus = true_um.abs() >= spacing_um / 2
    same_sign = (predicted_um.sign() == true_um.sign())[out_of_focus]
    contrast_mae = float("nan")
    if predicted_contrast is not None and true_contrast is not None:
        contrast_mae = float((predicted_contrast - true_contrast).abs().nanmean())
    return DefocusFigures(
        mae_um=float(error.mean()),
        z_accuracy=float((error < spacing_um / 2).float().mean()),
        sign_accuracy=float(same_sign.float().mean()),
        contrast_mae=contrast_mae,
        tiles=error.numel(),
    )


class Lpips(NamedTuple):
    """A perceptual distance and the name it is reported under, or the reason why there is none."""

    name: str  # "LPIPS (squeeze)"
    distance: nn.Module | None  # (B, 3, H, W) twice in [0, 1] -> (B,); None: not measured
    missing: str = ""  # one sentence, empty when measured


def load_lpips(folder: Path | str | None, network: str = "squeeze") -> Lpips:
    """LPIPS from weights in `folder` (SqueezeNet, offline), else from the package `lpips`, else why there is none.

    The weights are not shipped with this project. `folder` holds `squeeze.backbone.pth` (SqueezeNet 1.1's convolutions,
    as torchvision names them in `features`) and `squeeze.linear.pth` (the seven linear layers of LPIPS v0.1). The
    package downloads its backbone at first use.
    Figures of different networks are not comparable, so the network is part of the name.

    Args:
        folder: folder with the two files, or None for the package.
        network: "alex", "vgg" or "squeeze"; a folder holds "squeeze".

    Raises:
        ValueError: unknown network, or a folder with a network other than squeeze.
        FileNotFoundError: `folder` lacks one of the files.
    """
    if network not in ("alex", "vgg", "squeeze"):
        raise ValueError(f"the LPIPS network must be alex, vgg or squeeze, got {network}.")
    name = f"LPIPS ({network})"
    if folder is not None:
        if network != "squeeze":
            raise ValueError(f"an LPIPS folder holds the squeeze network, got network {network}.")
        return Lpips(name, SqueezeLpips(Path(folder)))
    try:
        return Lpips(name, _PackagedLpips(network))
    except ModuleNotFoundError as error:
        reason = f"the package {error.name} is not installed"
    except (ImportError, RuntimeError, OSError) as error:
        reason = f"the package lpips cannot be used here: {str(error).splitlines()[0]}"
    return Lpips(
        name, None, f"{name} was not measured: {reason}, and no folder with its weights (lpips_folder) was given."
    )


class _PackagedLpips(nn.Module):
    """The `lpips` package with images in [0, 1] and one figure per image."""

    def __init__(self, network: str) -> None:
        import lpips  # brings torchvision, which does not import beside every torch build

        super().__init__()
        self.distance = lpips.LPIPS(net=network, verbose=False).eval().requires_grad_(False)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        distance: Tensor = self.distance(prediction, target, normalize=True)  # (B, 1, 1, 1)
        return distance.flatten()


class Fire(nn.Module):
    """SqueezeNet's block: a 1 x 1 bottleneck feeding a 1 x 1 and a 3 x 3 half, (B, C, h, w) -> (B, 2 * half, h, w)."""

    def __init__(self, channels: int, bottleneck: int, half: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, bottleneck, kernel_size=1)
        self.expand1x1 = nn.Conv2d(bottleneck, half, kernel_size=1)
        self.expand3x3 = nn.Conv2d(bottleneck, half, kernel_size=3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        narrow = F.relu(self.squeeze(features))
        return F.relu(torch.cat((self.expand1x1(narrow), self.expand3x3(narrow)), dim=1))


class SqueezeLpips(nn.Module):
    """LPIPS v0.1 on SqueezeNet 1.1 (Iandola et al. 2016): weighted distance of unit features at seven depths.

    Each stage is a run of layers after which features are compared; a stage that starts on a new scale is pooled first.
    The layers' names are their places in torchvision's `features`, so that its weights load by name.
    """

    POOLED = (1, 2, 3)  # stages that start with a max pooling
    mean: Tensor
    std: Tensor

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"0": nn.Conv2d(3, 64, kernel_size=3, stride=2)})
        fires = {3: (64, 16, 64), 4: (128, 16, 64), 6: (128, 32, 128), 7: (256, 32, 128)}
        fires |= {9: (256, 48, 192), 10: (384, 48, 192), 11: (384, 64, 256), 12: (512, 64, 256)}
        self.layers.update({str(place): Fire(*sizes) for place, sizes in fires.items()})
        self.stages = (("0",), ("3", "4"), ("6", "7"), ("9",), ("10",), ("11",), ("12",))
        widths = (64, 128, 256, 384, 384, 512, 512)
        self.importance = nn.ParameterList([nn.Parameter(torch.empty(1, width, 1, 1)) for width in widths])
        # ImageNet's statistics, on which the backbone was trained
        self.register_buffer("mean", torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1), persistent=False)
        self._load(folder)
        self.eval().requires_grad_(False)

    def _load(self, folder: Path) -> None:
        for file in ("squeeze.backbone.pth", "squeeze.linear.pth"):
            if not (folder / file).is_file():
                raise FileNotFoundError(f"LPIPS (squeeze) needs the file {file} in its folder, not found in {folder}.")
        # The published linear layers were saved on a GPU
        backbone = torch.load(folder / "squeeze.backbone.pth", map_location="cpu", weights_only=True)
        linear = torch.load(folder / "squeeze.linear.pth", map_location="cpu", weights_only=True)
        self.layers.load_state_dict(backbone)
        self.importance.load_state_dict({str(i): linear[f"lin{i}.model.1.weight"] for i in range(len(self.stages))})

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """(B, 3, H, W) twice in [0, 1] -> (B,): 0 for equal images.

        Raises:
            ValueError: the two differ in shape or are smaller than 32 px.
        """
        _check_pair(prediction, target)
        if min(target.shape[-2:]) < 32:
            raise ValueError(f"LPIPS (squeeze) needs images of at least 32 x 32 px, got {tuple(target.shape[-2:])}.")
        features = (torch.cat((prediction, target)) - self.mean) / self.std  # (2B, 3, H, W)
        distance = torch.zeros(len(target), device=target.device)
        for depth, places in enumerate(self.stages):
            if depth in self.POOLED:
                features = F.max_pool2d(features, kernel_size=3, stride=2, ceil_mode=True)
            for place in places:
                features = self.layers[place](features)
            features = F.relu(features)  # changes the first convolution only: a Fire's output is not negative
            first, second = F.normalize(features, dim=1, eps=1e-10).chunk(2)
            distance = distance + ((first - second).square() * self.importance[depth]).sum(dim=1).mean(dim=(1, 2))
        return distance
