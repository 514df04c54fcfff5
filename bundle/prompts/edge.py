"""The edge prompt: edges of the blurred tile, weighted by how far the defocus prompt says they can be trusted.

    blurred_edges   P_LE, Canny of the defocused image                  (B, 1, H, W), 0 or 1
    defocus         P_D                                                 (B, C_D, h, w)
    edge_prompt     P_E = Conv(P_LE) · Upsample(Conv(P_D))              (B, C, H / fold, W / fold)

Learned together with P-diffusion, at P-diffusion's resolution: `fold` pixels a side are folded into channels.
Source: Cai et al. (MoP), section 3.1, "Defocus-aware Edge Prompt".
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class EdgePrompt(nn.Module):
    """Defocus-weighted edges.

    Args:
        channels: C of the prompt.
        defocus_width: C_D of the defocus prompt.
        fold: side of the pixel blocks folded into channels; P-diffusion's.
    """

    def __init__(self, channels: int, defocus_width: int, fold: int = 1) -> None:
        super().__init__()
        self.edges = nn.Sequential(nn.PixelUnshuffle(fold), nn.Conv2d(fold**2, channels, 3, padding=1))
        self.reliability = nn.Conv2d(defocus_width, channels, 3, padding=1)

    def forward(self, blurred_edges: Tensor, defocus: Tensor) -> Tensor:
        """P_E of P_LE (B, 1, H, W) and P_D (B, C_D, h, w)."""
        edges = self.edges(blurred_edges)
        weight = self.reliability(defocus)
        return edges * functional.interpolate(weight, edges.shape[-2:], mode="bilinear", align_corners=False)
