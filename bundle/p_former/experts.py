"""The feed-forward of the P-former: depth-wise convolutions as experts, weighted by a gate that sees the prompt.

    F       features of the block                            (B, C, H, W)
    P_P     restored pathology prompt, pooled                (B, D)
    w       gates, softmax(Linear([GAP(F), FC(P_P)]))        (B, n), rows sum to 1
    E_0     main expert; E_1..E_n sub-experts: depth-wise 3x3 convolutions
    F_o     E_0(F) + GELU(Σ_i w_i E_i(F))                    equation 3 of the MoP paper

As in Restormer's GDFN a 1x1 convolution first widens F into two halves, one for the gated branch and one for the
main expert, and a 1x1 convolution brings F_o back to C channels. With `experts=0` and the product this is GDFN.

A convolution is linear in its kernel, so Σ_i w_i E_i(F) = dwconv(F; Σ_i w_i K_i): all experts, the main one beside
them, run as one grouped convolution with a kernel merged per image. Exact up to rounding, and the only code path.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

COMBINATIONS = ("sum", "product")
GATE_INPUTS = ("features", "prompt", "both")


class Router(nn.Module):
    """Gates of one block from its pooled features and the pooled prompt."""

    def __init__(self, channels: int, prompt_width: int, experts: int, gate_input: str = "both") -> None:
        super().__init__()
        if gate_input not in GATE_INPUTS:
            raise ValueError(f"gate_input must be one of {GATE_INPUTS}, got {gate_input!r}.")
        self.gate_input = gate_input
        self.reduce = nn.Linear(prompt_width, channels)  # FC of the paper's figure
        self.gate = nn.Linear(2 * channels, experts)

    def forward(self, features: Tensor, prompt: Tensor) -> Tensor:
        """(B, C, H, W) and (B, D) -> gates (B, n). What `gate_input` leaves out is replaced by zeros."""
        pooled, reduced = features.mean((2, 3)), self.reduce(prompt)
        if self.gate_input == "features":
            reduced = torch.zeros_like(reduced)
        if self.gate_input == "prompt":
            pooled = torch.zeros_like(pooled)
        return self.gate(torch.cat([pooled, reduced], 1)).softmax(1)


class ExpertFeedForward(nn.Module):
    """Feed-forward of a block with a main expert and `experts` prompt-gated sub-experts.

    Args:
        channels: C.
        expansion: hidden channels over C; 2.66 in Restormer.
        experts: n; 0 is Restormer's GDFN: one depth-wise convolution, never gated.
        prompt_width: D.
        combine: "sum" (equation 3) or "product" (GDFN's gate, the ablation).
        gate_input: what the router sees.
    """

    def __init__(self, channels: int, expansion: float, experts: int, prompt_width: int, combine: str = "sum",
                 gate_input: str = "both") -> None:
        super().__init__()
        if combine not in COMBINATIONS:
            raise ValueError(f"combine must be one of {COMBINATIONS}, got {combine!r}.")
        self.hidden, self.combine, self.experts = int(channels * expansion), combine, experts
        self.project_in = nn.Conv2d(channels, 2 * self.hidden, 1, bias=False)
        self.main_expert = nn.Conv2d(self.hidden, self.hidden, 3, padding=1, groups=self.hidden, bias=False)
        one = nn.Conv2d(self.hidden, self.hidden, 3, padding=1, groups=self.hidden, bias=False)
        kernels = [nn.init.kaiming_uniform_(torch.empty_like(one.weight), a=5**0.5) for _ in range(max(1, experts))]
        self.sub_experts = nn.Parameter(torch.stack(kernels))  # (n, hidden, 1, 3, 3)
        self.router = Router(channels, prompt_width, experts, gate_input) if experts else None
        self.project_out = nn.Conv2d(self.hidden, channels, 1, bias=False)

    def forward(self, features: Tensor, prompt: Tensor) -> Tensor:
        """(B, C, H, W) and pooled prompt (B, D) -> (B, C, H, W)."""
        gated, main = self.mixed_experts(self.project_in(features), self.gates(features, prompt)).chunk(2, 1)
        gated = functional.gelu(gated)
        return self.project_out(main + gated if self.combine == "sum" else main * gated)

    def gates(self, features: Tensor, prompt: Tensor) -> Tensor:
        """Weights of the sub-experts, (B, max(1, n))."""
        if self.router is None:
            return features.new_ones(features.shape[0], 1)
        return self.router(features, prompt)

    def mixed_experts(self, x: Tensor, gates: Tensor) -> Tensor:
        """Σ_i w_i E_i of the first half of x and E_0 of the second: x (B, 2 hidden, H, W), gates (B, n) -> as x."""
        merged = (gates @ self.sub_experts.flatten(1)).view(len(x), self.hidden, 1, 3, 3)  # Σ_i w_i K_i of each image
        # Image by image: folded into one convolution, a batch would have to be copied to planes of pixels, and that and
        # the planes cost a CPU more than the calls.
        mixed = [functional.conv2d(one, torch.cat([kernels, self.main_expert.weight]), padding=1,
                                   groups=2 * self.hidden)
                 for one, kernels in zip(x.split(1), merged, strict=True)]
        return torch.cat(mixed) if len(mixed) > 1 else mixed[0]  # to join one image with nothing would copy it, too
