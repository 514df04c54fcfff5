"""The losses of the stages."""

from __future__ import annotations

import math

import ignite.distributed as idist
import torch
from torch import Tensor, nn
from torch.nn import functional

from bundle.prompts.attention import feed_forward, position_encoding
from bundle.prompts.compact_encoder import CompactEncoder
from bundle.prompts.defocus import DefocusEstimate, DefocusEstimator

PIXEL_LOSSES = ("l1", "l2", "charbonnier", "rmse", "psnr")


class DefocusLoss(nn.Module):
    """Equation 1: |d - d_hat| + weight |c - c_hat|, the contrast term only where contrast is defined."""

    def __init__(self, contrast_weight: float = 1.0, distance_weight: float = 1.0) -> None:
        super().__init__()
        self.contrast_weight, self.distance_weight = contrast_weight, distance_weight

    def forward(self, estimate: DefocusEstimate, target: Tensor) -> Tensor:
        """Scalar from an estimate and targets (B, 2): distance in µm, contrast or NaN."""
        distance = (estimate.defocus_um - target[:, 0]).abs().mean()
        defined = torch.isfinite(target[:, 1])
        error = (estimate.contrast - torch.where(defined, target[:, 1], estimate.contrast)).abs()
        # Of all processes: their mean is then the mean over all patches, however the undefined ones are spread.
        count = idist.all_reduce(defined.sum().float()) / idist.get_world_size()
        contrast = error.sum() / count.clamp(min=1 / idist.get_world_size())
        return self.distance_weight * distance + self.contrast_weight * contrast


class MaskedAutoencoder(nn.Module):
    """Trains a `CompactEncoder` without labels: hides most patches and predicts their pixels (He et al. 2022).

    Args:
        encoder: trained in place.
        masked: share of the patches hidden.
    """

    def __init__(self, encoder: CompactEncoder, masked: float = 0.6) -> None:
        super().__init__()
        self.encoder, self.masked = encoder, masked
        width, pixels = encoder.width, 3 * encoder.patch_px**2
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.mixer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.head = nn.Sequential(feed_forward(width), nn.LayerNorm(width), nn.Linear(width, pixels))

    def forward(self, image: Tensor, seeds: Tensor) -> Tensor:
        """Mean squared error on the hidden patches, each normalised by its own mean and deviation, (B,)."""
        size = self.encoder.patch_px
        rows, columns = image.shape[-2] // size, image.shape[-1] // size
        order = torch.stack([torch.randperm(rows * columns, generator=torch.Generator().manual_seed(seed))
                             for seed in seeds.tolist()]).to(image.device)
        kept = order[:, : max(1, round(order.shape[1] * (1 - self.masked)))]
        tokens = self.encoder(image, kept)[:, 1:]
        full = self.mask_token.expand(len(image), rows * columns, -1).clone()
        full = full.scatter(1, kept[..., None].expand_as(tokens), tokens)
        full = full + position_encoding(rows, columns, self.encoder.width, full)
        predicted = self.head(self.mixer(full))
        truth = functional.unfold(image, size, stride=size).transpose(1, 2)  # (B, N, 3 size²)
        truth = (truth - truth.mean(-1, keepdim=True)) / (truth.var(-1, keepdim=True) + 1e-4).sqrt()
        hidden = torch.ones(order.shape, device=image.device).scatter(1, kept, 0.0)
        return ((predicted - truth).square().mean(-1) * hidden).sum(1) / hidden.sum(1)


class LossAsPrediction(nn.Module):
    """For networks that return their own loss: the mean of it, whatever the targets."""

    def forward(self, loss: Tensor, target: Tensor) -> Tensor:
        """Scalar."""
        return loss.mean()


class FeatureDistance(nn.Module):
    """How differently a frozen defocus estimator sees two images: it was trained to see sharpness.

    Squared distance of its unit-normalised features of the first stages; a perceptual loss that needs no download.
    Every pair is first turned by any angle, enlarged and moved in a way of its own: features of strided convolutions
    reward a weave of the periods and along the directions of their grid, as long as it always lies alike on the pixels.
    """

    ENLARGED = 1.6  # at most; with a stride of 2, half a cycle a feature is 0.25 to 0.4 cycles a pixel then

    def __init__(self, estimator: DefocusEstimator, stages: int = 3) -> None:
        super().__init__()
        # In a tuple, so that the frozen estimator is no part of a checkpoint.
        self._estimator, self.stages = (estimator.eval().requires_grad_(False),), stages

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        """Scalar from images (B, 3, H, W) around [0, 1]."""
        estimator = self._estimator[0]
        views = self.views(target)
        seen = estimator.stages(functional.grid_sample(image, views, "bicubic", "reflection", False))[: self.stages]
        with torch.no_grad():
            target = functional.grid_sample(target, views, "bicubic", "reflection", False)
            wanted = estimator.stages(target)[: self.stages]
        pairs = zip(seen, wanted, strict=True)
        distances = [(functional.normalize(a) - functional.normalize(b)).square().sum(1).mean() for a, b in pairs]
        return torch.stack(distances).sum()

    def views(self, target: Tensor) -> Tensor:
        """Where to look at (B, 3, H, W), as grids (B, h, w, 2) of `grid_sample`; a function of each patch's pixels."""
        height, width = target.shape[-2:]
        maps = []
        for pixels in target:
            drawn = torch.rand(4, generator=torch.Generator().manual_seed(int(8 * pixels.abs().sum())))
            angle, scale = 2 * math.pi * float(drawn[0]), self.ENLARGED ** -float(drawn[1])
            cosine, sine = scale * math.cos(angle), scale * math.sin(angle)
            right, down = ((drawn[2:] - 0.5) * torch.tensor([16 / width, 16 / height])).tolist()  # up to 4 px
            maps.append([[cosine, -sine * height / width, right], [sine * width / height, cosine, down]])
        size = [len(target), 3, height, width]
        return functional.affine_grid(torch.tensor(maps, device=target.device), size, align_corners=False)


class RestorationLoss(nn.Module):
    """Pixel loss plus optional terms; the paper's L1 or squared error by default.

    Args:
        pixel: "l1" (P-former), "l2" (P-diffusion, equation 5), "charbonnier", "rmse": each patch's root mean square
            error, or "psnr": minus each patch's PSNR, dB, over 100. By "l2" patches far out of focus rule, by "psnr"
            those near focus, whose errors are small, count as much; "rmse" lies between.
        frequency_weight: of the L1 distance of the Fourier transforms.
        feature_weight: of `features`.
        features: a perceptual distance.
    """

    def __init__(self, pixel: str = "l1", frequency_weight: float = 0.0, feature_weight: float = 0.0,
                 features: nn.Module | None = None) -> None:
        super().__init__()
        if pixel not in PIXEL_LOSSES:
            raise ValueError(f"pixel must be one of {PIXEL_LOSSES}, got {pixel!r}.")
        self.pixel, self.frequency_weight, self.feature_weight = pixel, frequency_weight, feature_weight
        self.features = features

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        """Scalar from images (B, 3, H, W) around [0, 1]."""
        difference = image - target
        if self.pixel == "l1":
            loss = difference.abs().mean()
        elif self.pixel == "l2":
            loss = (2 * difference).square().mean()  # on [-1, 1], where equation 5 lives
        elif self.pixel == "rmse":
            loss = (difference.square().mean((1, 2, 3)) + 1e-6).sqrt().mean()
        elif self.pixel == "psnr":
            loss = (difference.square().mean((1, 2, 3)) + 1e-5).log10().mean() / 10
        else:
            loss = (difference.square() + 1e-6).sqrt().mean()
        if self.frequency_weight:
            loss = loss + self.frequency_weight * torch.fft.rfft2(difference, norm="ortho").abs().mean()
        if self.feature_weight and self.features is not None:
            loss = loss + self.feature_weight * self.features(image, target)
        return loss
