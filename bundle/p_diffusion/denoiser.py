"""The denoiser f_θ: predicts `x_0` from the state, the image to refine, the step and the prompts.

    x_t, y_0    state and image to refine, [-1, 1]            (B, 3, H, W)
    pathology   P_P                                           (B, N, D)
    edges       P_LE                                          (B, 1, H, W)
    defocus     P_D                                           (B, C_D, h, w)
    h           h = Conv3x3([x_t, y_0]);  h = h + Conv1x1([h, P_E])     defocus-aware edge fusion

Pixels are folded into channels (pixel-unshuffle), the U-Net is MONAI's, with cross-attention to P_P at its bottom
levels only. The network's output is unfolded and added to y_0; two convolutions at full resolution finish it, because
nothing else looks across the borders of the folded blocks, and a weave as wide as a block stays. All last convolutions
start at zero, so an untrained P-diffusion returns the coarse image.
Source: Cai et al. (MoP), section 3.3, figure 2 (c); the finish is ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn

from bundle.prompts.edge import EdgePrompt

FINISH_CHANNELS = 16


class Denoiser(nn.Module):
    """U-Net of P-diffusion.

    Args:
        channels: of the U-Net's levels.
        attention_levels: which levels attend to P_P; the bottom ones.
        res_blocks: residual blocks a level.
        prompt_width: D of the pathology prompt.
        defocus_width: C_D of the defocus prompt.
        fold: side of the pixel blocks folded into channels.
        head_channels: channels of an attention head.
        norm_groups: groups of the normalisations; divides every entry of `channels`.
        use_pathology, use_edges: False replaces the prompt by zeros (ablation).
        use_defocus: False weights edges by one learned number a channel, not by P_D: P_LE for P_E (ablation).
    """

    def __init__(self, channels: Sequence[int] = (128, 256, 256, 512),
                 attention_levels: Sequence[bool] = (False, False, True, True), res_blocks: int = 2,
                 prompt_width: int = 1536, defocus_width: int = 512, fold: int = 4, head_channels: int = 32,
                 norm_groups: int = 32, use_pathology: bool = True, use_edges: bool = True,
                 use_defocus: bool = True) -> None:
        super().__init__()
        width, pixels = channels[0], 3 * fold**2
        self.use_pathology, self.use_edges, self.use_defocus = use_pathology, use_edges, use_defocus
        self.stride = fold * 2 ** (len(channels) - 1)  # H and W must be multiples of it
        self.fold, self.unfold = nn.PixelUnshuffle(fold), nn.PixelShuffle(fold)
        self.shallow = nn.Conv2d(2 * pixels, width, 3, padding=1)
        self.edge_prompt = EdgePrompt(width, defocus_width, fold)
        self.edge_fusion = nn.Conv2d(2 * width, width, 1)
        self.unet = DiffusionModelUNet(
            spatial_dims=2, in_channels=width, out_channels=pixels, num_res_blocks=res_blocks, channels=tuple(channels),
            attention_levels=tuple(attention_levels), norm_num_groups=norm_groups, num_head_channels=head_channels,
            with_conditioning=True, cross_attention_dim=prompt_width)
        last = nn.Conv2d(FINISH_CHANNELS, 3, 3, padding=1)
        for weight in last.parameters():
            nn.init.zeros_(weight)
        self.finish = nn.Sequential(nn.Conv2d(6, FINISH_CHANNELS, 3, padding=1), nn.GELU(), last)

    def forward(self, x_t: Tensor, y_0: Tensor, timestep: Tensor, pathology: Tensor, edges: Tensor,
                defocus: Tensor) -> Tensor:
        """x_0_pred, (B, 3, H, W), around [-1, 1]; x_t already scaled by the schedule, timestep (B,) in 1..T."""
        edge_prompt = self.edge_prompt(edges, defocus if self.use_defocus else torch.zeros_like(defocus))
        if not self.use_edges:
            edge_prompt = torch.zeros_like(edge_prompt)
        if not self.use_pathology:
            pathology = torch.zeros_like(pathology)
        # Channels beside each other, as in the P-former: a tenth faster on two threads of a CPU, a third on one.
        folded = torch.cat([self.fold(x_t), self.fold(y_0)], 1).contiguous(memory_format=torch.channels_last)
        h = self.shallow(folded)
        h = h + self.edge_fusion(torch.cat([h, edge_prompt], 1))
        correction = self.unfold(self.unet(h, timestep, context=pathology))
        return y_0 + correction + self.finish(torch.cat([correction, y_0], 1))
