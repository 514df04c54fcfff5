"""tile -> PromptMixture: the estimator, the encoder with its restorer, and the edge detector side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bundle.prompts.canny import canny
from bundle.prompts.defocus import DefocusEstimator
from bundle.prompts.mixture import PromptMixture
from bundle.prompts.pathology import PromptRestorer

GATE_PROMPTS = ("defocus", "blurred", "pathology")  # P_D, P_LP, P_P


class Prompter(nn.Module):
    """Figure 2 (a) of the paper.

    Args:
        estimator: D_φ.
        encoder: a pathology encoder, image (B, 3, H, W) in [0, 1] -> tokens (B, N, D): `CompactEncoder` or
            `FoundationEncoder`.
        restorer: R_p; None passes P_LP on as it is (ablation).
        edge_sigma_px: smoothing of Canny.
        edge_low, edge_high: Canny's thresholds on the gradient of the grey image in [0, 1].
    """

    def __init__(self, estimator: DefocusEstimator, encoder: nn.Module, restorer: PromptRestorer | None,
                 edge_sigma_px: float = 1.0, edge_low: float = 0.05, edge_high: float = 0.10) -> None:
        super().__init__()
        self.estimator, self.encoder, self.restorer = estimator, encoder, restorer
        self.edge_sigma_px, self.edge_low, self.edge_high = edge_sigma_px, edge_low, edge_high

    def forward(self, image: Tensor) -> PromptMixture:
        """Prompts of (B, 3, H, W) in [0, 1]."""
        estimate = self.estimator(image)
        edges = canny(image, self.edge_sigma_px, self.edge_low, self.edge_high)
        tokens = self.encoder(image)
        pathology = tokens if self.restorer is None else self.restorer(tokens, estimate.prompt)
        return PromptMixture(estimate.prompt, pathology, edges, estimate.defocus_um, estimate.contrast)

    def pathology(self, image: Tensor) -> Tensor:
        """P_P alone, (B, N, D): all that the P-former needs."""
        tokens = self.encoder(image)
        return tokens if self.restorer is None else self.restorer(tokens, self.estimator(image).prompt)

    def gate_prompt(self, image: Tensor, names: Sequence[str]) -> Tensor:
        """What the gates of the P-former are told in the ablation of table 4: pooled prompts side by side, (B, 1, ΣD).

        Raises:
            ValueError: a name that is none of `GATE_PROMPTS`, or none at all.
        """
        if not names or not set(names) <= set(GATE_PROMPTS):
            raise ValueError(f"gate prompts must be some of {GATE_PROMPTS}, got {tuple(names)}.")
        estimate, blurred = self.estimator(image), self.encoder(image)
        restored = blurred if self.restorer is None else self.restorer(blurred, estimate.prompt)
        pooled = {"defocus": estimate.prompt.mean((2, 3)), "blurred": blurred.mean(1), "pathology": restored.mean(1)}
        return torch.cat([pooled[name] for name in names], 1)[:, None]
