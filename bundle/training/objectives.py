"""The losses of the stages."""

from __future__ import annotations

from collections.abc import Sequence

import ignite.distributed as idist
import torch
from torch import Tensor, nn
from torch.nn import functional

from bundle.prompts.attention import feed_forward, position_encoding
from bundle.prompts.compact_encoder import CompactEncoder
from bundle.prompts.defocus import DefocusEstimate
from bundle.training.metrics import ssim

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


class BandLoss(nn.Module):
    """What is left of each patch's squared error behind its band gains, as a logarithm: PSNR with the sign turned.

    Args:
        floor: mean squared error below which nothing is to be won; a tenth of a step of 8 bits.
    """

    def __init__(self, floor: float = 1e-7) -> None:
        super().__init__()
        self.floor = floor

    def forward(self, gains: Tensor, products: Tensor) -> Tensor:
        """Scalar from gains (B, 3, 2 N, h, w) and `BandGains.products` (B, 3, 2 N + 1, 2 N + 1, h, w)."""
        left = torch.cat([-gains, torch.ones_like(gains[:, :, :1])], 2)  # what is missing less what the gains add
        errors = torch.einsum("bckhw,bcklhw,bclhw->bchw", left, products, left)
        return (errors.mean((1, 2, 3)).clamp(min=0) + self.floor).log().mean()


class QuantileLoss(nn.Module):
    """Learns what the truth falls below in a share of the cases, `quantile`, instead of its mean (Koenker and Bassett
    1978): below 0.5 it errs on the low side, the more so the less is known.
    """

    def __init__(self, quantile: float) -> None:
        super().__init__()
        if not 0 < quantile < 1:
            raise ValueError(f"quantile must lie between 0 and 1, got {quantile}.")
        self.quantile = quantile

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Scalar from two tensors of one shape."""
        missing = target - prediction
        return torch.maximum(self.quantile * missing, (self.quantile - 1) * missing).mean()


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


class TextureDistance(nn.Module):
    """How differently rough two images are at each frequency, wherever in a window their details lie.

    Mean absolute difference of local amplitude spectra, in grey levels of 255: windows of each size, half a window
    apart, the power of 3 x 3 frequencies pooled. What cannot be seen in a blurred image cannot be put in its place, but
    how much of it there is at each frequency can; small windows tell the place, large ones the frequency. A weave has
    more of its own than tissue ever has. After the spectral losses of speech synthesis (Yamamoto et al. 2020,
    multi-resolution STFT loss), on images.

    Args:
        windows_px: sides of the windows, even; the distance is the mean over them.

    Raises:
        ValueError: no window, or one that is odd or below 4 px.
    """

    FLOOR = 1.0  # power that is nothing, grey levels²: fainter noise need not be drawn
    WINDOWS_PX = (8, 16, 32)

    def __init__(self, windows_px: Sequence[int] = WINDOWS_PX) -> None:
        super().__init__()
        self.windows_px = tuple(windows_px)
        if not self.windows_px or any(side_px < 4 or side_px % 2 for side_px in self.windows_px):
            raise ValueError(f"windows of texture must be even and 4 px or more, got {list(self.windows_px)}.")

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        """Scalar from images (B, 3, H, W) around [0, 1]."""
        distances = []
        for side_px in self.windows_px:
            with torch.no_grad():
                wanted = self.amplitude(target, side_px)
            distances.append((self.amplitude(image, side_px) - wanted).abs().mean())
        return torch.stack(distances).mean()

    def amplitude(self, image: Tensor, side_px: int) -> Tensor:
        """Of (B, 3, H, W): (windows of all images and channels, side_px, side_px / 2 + 1).

        White noise has its deviation at every frequency.
        """
        step = side_px // 2
        windows = image.float().unfold(2, side_px, step).unfold(3, side_px, step).reshape(-1, side_px, side_px)
        taper = torch.hann_window(side_px, periodic=False, device=image.device)
        taper = taper[:, None] * taper
        waves = (windows - windows.mean((1, 2), keepdim=True)) * (255 * taper / taper.square().mean().sqrt())
        power = torch.fft.rfft2(waves, norm="ortho").abs().square()[:, None]
        power = functional.pad(functional.pad(power, (0, 0, 1, 1), mode="circular"), (1, 1, 0, 0), mode="replicate")
        return (functional.avg_pool2d(power, 3, 1)[:, 0] + self.FLOOR).sqrt()


class RestorationLoss(nn.Module):
    """Pixel loss plus optional terms; the paper's L1 or squared error by default.

    Args:
        pixel: "l1" (P-former), "l2" (P-diffusion, equation 5), "charbonnier", "rmse": each patch's root mean square
            error, or "psnr": minus each patch's PSNR, dB, over 100. By "l2" patches far out of focus rule, by "psnr"
            those near focus, whose errors are small, count as much; "rmse" lies between.
        frequency_weight: of the L1 distance of the Fourier transforms.
        texture_weight: of `TextureDistance`.
        texture_windows_px: its windows.
        ssim_weight: of 1 - SSIM (Zhao et al. 2017), which asks for as much detail as the truth has, as
            `TextureDistance` does, but in its place, and counts it against the contrast around it.
        weave_weight: of the squared error of each place of a grid of `GRID_PX`, meaned over areas of `AREA_PX`: a
            network that works on folded pixels can draw the same pattern in every block, which costs little otherwise.
    """

    GRID_PX, AREA_PX = 4, 64

    def __init__(self, pixel: str = "l1", frequency_weight: float = 0.0, texture_weight: float = 0.0,
                 texture_windows_px: Sequence[int] = TextureDistance.WINDOWS_PX, ssim_weight: float = 0.0,
                 weave_weight: float = 0.0) -> None:
        super().__init__()
        if pixel not in PIXEL_LOSSES:
            raise ValueError(f"pixel must be one of {PIXEL_LOSSES}, got {pixel!r}.")
        self.pixel, self.frequency_weight = pixel, frequency_weight
        self.texture_weight, self.ssim_weight, self.weave_weight = texture_weight, ssim_weight, weave_weight
        self.texture = TextureDistance(texture_windows_px)

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
        if self.texture_weight:
            loss = loss + self.texture_weight * self.texture(image, target)
        if self.ssim_weight:
            loss = loss + self.ssim_weight * (1 - ssim(image, target)).mean()
        if self.weave_weight:
            loss = loss + self.weave_weight * self.weave(2 * difference)
        return loss

    def weave(self, difference: Tensor) -> Tensor:
        """What errors, (B, 3, H, W), have in common at each place of the grid but not at all places."""
        places = functional.pixel_unshuffle(difference, self.GRID_PX).unflatten(1, (3, -1))  # (B, 3, 16, H/4, W/4)
        size = [min(self.AREA_PX // self.GRID_PX, side) for side in places.shape[-2:]]
        means = functional.avg_pool3d(places, (1, *size))
        return (means - means.mean(2, keepdim=True)).square().mean()
