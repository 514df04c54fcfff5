"""The prompt restorer R_p: the encoder's tokens of a blurred tile -> what it would have said of the sharp one.

    blurred_tokens     P_LP, encoder on the defocused image         (B, N, D)
    defocus_prompt     P_D                                          (B, C, h, w)
    pathology_prompt   P_P, trained towards P_HP of the sharp image (B, N, D)

Blocks of self-attention, cross-attention to the defocus prompt and feed-forward, pre-norm and residual: what starts
untrained returns P_LP nearly unchanged. Source: Cai et al. (MoP), equation 2.
"""

from __future__ import annotations

from torch import Tensor, nn

from bundle.prompts.attention import Attention, feed_forward, position_encoding

DEFOCUS_TOKENS = ("spatial", "pooled")


class PromptRestorerBlock(nn.Module):
    """SA, CA, FFN of the paper's figure 2 (a)."""

    def __init__(self, width: int, defocus_width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attention = Attention(width, heads)
        self.cross_attention = Attention(width, heads, defocus_width)
        self.ffn = feed_forward(width)

    def forward(self, tokens: Tensor, defocus: Tensor) -> Tensor:
        """(B, N, D) and (B, M, C) -> (B, N, D)."""
        normed = self.norm1(tokens)
        tokens = tokens + self.self_attention(normed, normed)
        tokens = tokens + self.cross_attention(self.norm2(tokens), defocus)
        return tokens + self.ffn(self.norm3(tokens))


class PromptRestorer(nn.Module):
    """R_p of equation 2.

    Args:
        width: D of the encoder's tokens.
        defocus_width: C of the defocus prompt.
        depth: blocks, L in the paper.
        heads: attention heads.
        defocus_tokens: "spatial": P_D as h w tokens; "pooled": as one (the figure's GAP), where softmax over the
            single key is 1 and cross-attention is a bias.
    """

    def __init__(self, width: int = 1536, defocus_width: int = 512, depth: int = 4, heads: int = 8,
                 defocus_tokens: str = "spatial") -> None:
        super().__init__()
        if defocus_tokens not in DEFOCUS_TOKENS:
            raise ValueError(f"defocus_tokens must be one of {DEFOCUS_TOKENS}, got {defocus_tokens!r}.")
        self.defocus_tokens, self.defocus_width = defocus_tokens, defocus_width
        self.defocus_norm = nn.LayerNorm(defocus_width)
        self.blocks = nn.ModuleList(PromptRestorerBlock(width, defocus_width, heads) for _ in range(depth))
        self.correction = nn.Linear(width, width)
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)

    def forward(self, blurred_tokens: Tensor, defocus_prompt: Tensor) -> Tensor:
        """P_P from P_LP (B, N, D) and P_D (B, C, h, w)."""
        defocus = defocus_prompt.flatten(2).transpose(1, 2)  # (B, h w, C)
        if self.defocus_tokens == "pooled":
            defocus = defocus.mean(1, keepdim=True)
        defocus = self.defocus_norm(defocus)
        if self.defocus_tokens == "spatial":
            rows, columns = defocus_prompt.shape[-2:]
            defocus = defocus + position_encoding(rows, columns, self.defocus_width, defocus)
        tokens = blurred_tokens
        for block in self.blocks:
            tokens = block(tokens, defocus)
        return blurred_tokens + self.correction(tokens)
