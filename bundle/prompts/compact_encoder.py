"""The compact preset's pathology encoder: a small vision transformer that we train ourselves.

It stands where Prov-GigaPath stands in the paper and gives the same thing: a class token and patch tokens. It is
trained without labels, as a masked autoencoder on sharp fields (configs/train_encoder.json; He et al. 2022).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from bundle.prompts.attention import Attention, feed_forward, position_encoding


class EncoderBlock(nn.Module):
    """Pre-norm self-attention and feed-forward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.ffn = Attention(width, heads), feed_forward(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        normed = self.norm1(tokens)
        tokens = tokens + self.attention(normed, normed)
        return tokens + self.ffn(self.norm2(tokens))


class CompactEncoder(nn.Module):
    """Vision transformer on patches of `patch_px`; sizes that do not divide are padded by reflection.

    Args:
        width: D of the tokens.
        depth: blocks.
        heads: attention heads.
        patch_px: side of a token's patch.
    """

    def __init__(self, width: int = 128, depth: int = 4, heads: int = 4, patch_px: int = 16) -> None:
        super().__init__()
        self.width, self.patch_px = width, patch_px
        self.embed = nn.Conv2d(3, width, patch_px, stride=patch_px)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(EncoderBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, image: Tensor, kept: Tensor | None = None) -> Tensor:
        """Tokens of (B, 3, H, W) in [0, 1]: (B, 1 + N, D), the class token first, N = ceil(H/16) ceil(W/16).

        Args:
            image: RGB.
            kept: (B, K) indices of the patches to encode; the others are masked out (training only).
        """
        below, right = -image.shape[-2] % self.patch_px, -image.shape[-1] % self.patch_px
        if below or right:
            image = functional.pad(image, (0, right, 0, below), mode="replicate")
        patches = self.embed(image * 2 - 1)  # (B, D, rows, columns)
        rows, columns = patches.shape[-2:]
        tokens = patches.flatten(2).transpose(1, 2) + position_encoding(rows, columns, self.width, patches)
        if kept is not None:
            tokens = tokens.gather(1, kept[..., None].expand(-1, -1, self.width))
        tokens = torch.cat([self.class_token.expand(tokens.shape[0], -1, -1), tokens], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)
