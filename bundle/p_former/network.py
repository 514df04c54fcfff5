"""The P-former: a Restormer whose feed-forwards are prompt-gated experts; it restores structure, the coarse stage.

    image     defocused RGB, [0, 1]                    (B, 3, H, W)
    prompt    restored pathology prompt P_P            (B, N, D)
    coarse    image + correction, not clipped          (B, 3, H, W)

Four levels; each halves the size and doubles the channels on the way down, and back up with a skip connection.
Source: Zamir et al. 2022 (Restormer); Cai et al. (MoP), section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bundle.p_former.blocks import ChannelLayerNorm, Downsample, Mdta, Upsample
from bundle.p_former.experts import ExpertFeedForward

LEVELS = 4


class PFormerBlock(nn.Module):
    """x + MDTA(norm(x)), then x + experts(norm(x), prompt)."""

    def __init__(self, channels: int, heads: int, expansion: float, experts: int, prompt_width: int, combine: str,
                 gate_input: str) -> None:
        super().__init__()
        self.norm1 = ChannelLayerNorm(channels)
        self.attn = Mdta(channels, heads)
        self.norm2 = ChannelLayerNorm(channels)
        self.ffn = ExpertFeedForward(channels, expansion, experts, prompt_width, combine, gate_input)

    def forward(self, x: Tensor, prompt: Tensor) -> Tensor:
        """(B, C, H, W) and pooled prompt (B, D) -> (B, C, H, W)."""
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x), prompt)


class PFormerLevel(nn.ModuleList):
    """Blocks of one resolution, in order; every one sees the prompt."""

    def forward(self, x: Tensor, prompt: Tensor) -> Tensor:
        """(B, C, H, W) and pooled prompt (B, D) -> (B, C, H, W)."""
        for block in self:
            x = block(x, prompt)
        return x


class PFormer(nn.Module):
    """Prompt-driven Restormer.

    Args:
        dim: channels of the first level.
        blocks: blocks of the four levels.
        refinement_blocks: blocks after the decoder.
        heads: attention heads of the four levels.
        expansion: hidden over input channels of the feed-forwards.
        experts: sub-experts of each block; 0 is Restormer.
        prompt_width: D of the pathology prompt.
        combine: "sum" (the paper) or "product" (Restormer's gate).
        gate_input: "both" (the paper), "features" or "prompt".
        unshuffle: side of the pixel blocks that are folded into channels first; 1 is Restormer, 2 costs a quarter.
        self_ensemble: in evaluation mode the mean of two views, the image and the image with rows and columns swapped;
            twice the time (geometric self-ensemble, Lim et al. 2017, EDSR, with two of its eight views).
    """

    def __init__(self, dim: int = 48, blocks: Sequence[int] = (4, 6, 6, 8), refinement_blocks: int = 4,
                 heads: Sequence[int] = (1, 2, 4, 8), expansion: float = 2.66, experts: int = 3,
                 prompt_width: int = 1536, combine: str = "sum", gate_input: str = "both", unshuffle: int = 1,
                 self_ensemble: bool = False) -> None:
        super().__init__()
        if len(blocks) != LEVELS or len(heads) != LEVELS:
            raise ValueError(f"blocks and heads must name {LEVELS} levels, got {len(blocks)} and {len(heads)}.")
        self.stride = unshuffle * 2 ** (LEVELS - 1)  # H and W must be multiples of it
        self.self_ensemble = self_ensemble
        self.fold, self.unfold = nn.PixelUnshuffle(unshuffle), nn.PixelShuffle(unshuffle)

        def level(channels: int, count: int, head_count: int) -> PFormerLevel:
            options = (head_count, expansion, experts, prompt_width, combine, gate_input)
            return PFormerLevel(PFormerBlock(channels, *options) for _ in range(count))

        pixels = 3 * unshuffle**2
        self.patch_embed = nn.Conv2d(pixels, dim, 3, padding=1, bias=False)
        self.encoders = nn.ModuleList(level(dim * 2**i, blocks[i], heads[i]) for i in range(LEVELS))
        self.downs = nn.ModuleList(Downsample(dim * 2**i) for i in range(LEVELS - 1))
        self.ups = nn.ModuleList(Upsample(dim * 2 ** (i + 1)) for i in range(LEVELS - 1))
        # The finest decoder level keeps both halves of its skip connection, as Restormer does.
        self.reduces = nn.ModuleList(nn.Conv2d(dim * 2 ** (i + 1), dim * 2**i, 1, bias=False)
                                     for i in range(1, LEVELS - 1))
        self.decoders = nn.ModuleList(level(dim * 2 ** max(i, 1), blocks[i], heads[i]) for i in range(LEVELS - 1))
        self.refinement = level(2 * dim, refinement_blocks, heads[0])
        self.output = nn.Conv2d(2 * dim, pixels, 3, padding=1, bias=False)
        nn.init.zeros_(self.output.weight)  # an untrained P-former returns its input

    def forward(self, image: Tensor, prompt: Tensor) -> Tensor:
        """Coarse restoration.

        Args:
            image: (B, 3, H, W), [0, 1].
            prompt: P_P tokens, (B, N, D).

        Returns:
            (B, 3, H, W), around [0, 1], not clipped.

        Raises:
            ValueError: H or W is no multiple of `stride`.
        """
        if image.shape[-2] % self.stride or image.shape[-1] % self.stride:
            raise ValueError(f"height and width must be multiples of {self.stride}, got {tuple(image.shape[-2:])}.")
        pooled = prompt.mean(1)  # (B, D)
        correction = self.correction(image, pooled)
        if self.self_ensemble and not self.training:
            swapped = self.correction(image.transpose(-2, -1), pooled).transpose(-2, -1)
            correction = (correction + swapped) / 2
        return image + correction

    def correction(self, image: Tensor, pooled: Tensor) -> Tensor:
        """What one view adds: image (B, 3, H, W) and pooled prompt (B, D) -> (B, 3, H, W)."""
        # Channels beside each other: norms, convolutions and attention then run without a copy (decision 1 has times).
        x = self.patch_embed(self.fold(image).contiguous(memory_format=torch.channels_last))
        skips = []
        for encoder, down in zip(self.encoders[:-1], self.downs, strict=True):
            skips.append(encoder(x, pooled))
            x = down(skips[-1])
        x = self.encoders[-1](x, pooled)
        for i in reversed(range(LEVELS - 1)):
            x = torch.cat([self.ups[i](x), skips[i]], 1)
            x = self.decoders[i](self.reduces[i - 1](x) if i else x, pooled)
        return self.unfold(self.output(self.refinement(x, pooled)))
