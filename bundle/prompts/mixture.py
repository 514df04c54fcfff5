"""The mixture of prompts: all that the two restoring stages are told of a tile."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class PromptMixture(NamedTuple):
    """Prompts of a batch of tiles."""

    defocus: Tensor  # P_D, (B, C, h, w)
    pathology: Tensor  # P_P, (B, N, D)
    edges: Tensor  # P_LE, (B, 1, H, W), 0 or 1; P-diffusion learns P_E from it and P_D
    defocus_um: Tensor  # (B,), signed
    contrast: Tensor  # (B,)
