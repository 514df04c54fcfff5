"""The defocus estimator D_φ: how far a tile is from focus, and the defocus prompt.

    prompt        P_D, features before pooling      (B, C, h, w), h = H / 32
    defocus_um    signed distance to best focus     (B,) µm
    contrast      contrast value that is left       (B,) in [0, 1] once trained, not clipped

Backbone: MONAI's 2-D ResNet; ResNet-34 in the paper preset. Source: Cai et al. (MoP), section 3.1, equation 1.
The compact preset adds to its features what a small network reads from local spectra (`spectrum`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from monai.networks.nets import ResNet
from torch import Tensor, nn
from torch.nn import functional

from bundle.prompts.spectrum import LocalSpectrum

HIDDEN_LAYERS = 3  # of the reader: on the same patches three told the distance better than two (decision 7)


class DefocusEstimate(NamedTuple):
    """What the estimator says of a batch of tiles."""

    prompt: Tensor  # P_D, (B, C, h, w)
    defocus_um: Tensor  # (B,)
    contrast: Tensor  # (B,)


class SpectrumReader(nn.Module):
    """Reads local spectra, one for each 2 x 2 positions of P_D."""

    def __init__(self, spectrum_width: int, channels: int) -> None:
        super().__init__()
        widths = [spectrum_width, *HIDDEN_LAYERS * [3 * channels]]
        layers: list[nn.Module] = [nn.BatchNorm2d(spectrum_width)]
        for width, hidden in itertools.pairwise(widths):
            layers += [nn.Conv2d(width, hidden, 1), nn.GELU(), nn.Dropout(0.15)]
        last = nn.Conv2d(widths[-1], channels, 1)
        for weight in last.parameters():
            nn.init.zeros_(weight)  # untrained, it adds nothing to what the backbone saw
        self.layers = nn.Sequential(*layers, last)

    def forward(self, spectra: Tensor, size: Sequence[int]) -> Tensor:
        """(B, spectrum_width, ceil(h / 2) + 1, ceil(w / 2) + 1) -> (B, C, h, w), `size` = (h, w)."""
        read = functional.interpolate(self.layers(spectra), scale_factor=2.0, mode="bilinear")
        return read[..., : size[0], : size[1]]


class DefocusEstimator(nn.Module):
    """ResNet with a distance head and a contrast head on its pooled features.

    Args:
        layers: blocks of the four stages; (3, 4, 6, 3) is ResNet-34.
        widths: channels of the four stages; (64, 128, 256, 512) is ResNet-34. The last is C.
        frequencies: of the local spectra that are read beside the backbone; 0 is the paper's estimator, without them.
    """

    stride = 32  # input pixels a position of P_D

    def __init__(self, layers: Sequence[int] = (3, 4, 6, 3), widths: Sequence[int] = (64, 128, 256, 512),
                 frequencies: int = 0) -> None:
        super().__init__()
        # conv1 stride 2 and these shortcuts make the keys equal torchvision's ResNet.
        self.backbone = ResNet("basic", list(layers), list(widths), spatial_dims=2, n_input_channels=3, conv1_t_size=7,
                               conv1_t_stride=2, shortcut_type="B", bias_downsample=False, feed_forward=False)
        self.width = widths[-1]
        self.spectrum = LocalSpectrum(frequencies, stride_px=2 * self.stride) if frequencies else None
        self.reader = SpectrumReader(self.spectrum.width, self.width) if self.spectrum is not None else None
        self.distance_head = nn.Linear(self.width, 1)
        self.contrast_head = nn.Linear(self.width, 1)

    def stages(self, image: Tensor) -> list[Tensor]:
        """Features of the backbone's four stages, strides 4, 8, 16, 32, for (B, 3, H, W) in [0, 1]."""
        net = self.backbone
        # A fixed scale, never the image's own range: blur must not be normalised away.
        x = net.maxpool(net.act(net.bn1(net.conv1(image * 2 - 1))))
        features = []
        for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
            x = stage(x)
            features.append(x)
        return features

    def seen(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the heads are read from: the backbone's last features and the local spectra, if there are any."""
        return self.stages(image)[-1], None if self.spectrum is None else self.spectrum(image)

    def read(self, features: Tensor, spectra: Tensor | None) -> DefocusEstimate:
        """Estimate from what was `seen`."""
        prompt = features
        if self.reader is not None and spectra is not None:
            prompt = prompt + self.reader(spectra, features.shape[-2:])
        pooled = prompt.mean((2, 3))  # (B, C)
        return DefocusEstimate(prompt, self.distance_head(pooled)[:, 0], self.contrast_head(pooled)[:, 0])

    def forward(self, image: Tensor) -> DefocusEstimate:
        """Estimate of (B, 3, H, W) in [0, 1]."""
        return self.read(*self.seen(image))

    def focus_map(self, image: Tensor) -> Tensor:
        """Signed distance at every position of P_D, upsampled, (B, 1, H, W) µm: figure 4 of the paper."""
        return self.map_of(self(image).prompt, image.shape[-2:])

    def map_of(self, prompt: Tensor, size: Sequence[int]) -> Tensor:
        """Focus map of a defocus prompt: the distance head at every position, (B, 1, *size) µm."""
        weight = self.distance_head.weight[:, :, None, None]
        distance = functional.conv2d(prompt, weight, self.distance_head.bias)
        return functional.interpolate(distance, tuple(size), mode="bilinear", align_corners=False)


class Reading(nn.Module):
    """An estimator whose backbone has already been run: what is trained where it is frozen (stage 1b)."""

    def __init__(self, estimator: DefocusEstimator) -> None:
        super().__init__()
        self.reader, self.heads = estimator.reader, nn.ModuleList([estimator.distance_head, estimator.contrast_head])
        self._estimator = (estimator,)  # in a tuple, so that the backbone is no part of what is trained

    def forward(self, features: Tensor, spectra: Tensor) -> DefocusEstimate:
        """Estimate from features (B, C, h, w) and spectra (B, S, ceil(h / 2) + 1, ceil(w / 2) + 1)."""
        return self._estimator[0].read(features, spectra)
