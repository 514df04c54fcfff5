"""The chain as the protocol sees it: whole fields in, whole fields out, and what its prompts read off a tile.

Restoring gets the defocused image and nothing else; only `prompt_errors` is shown the sharp field, to score by.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from bundle.field_restoration import restore_field
from bundle.restoration import TileRestorer
from bundle.weights import load_weights


class ChainOnFields:
    """A TileRestorer over a field by overlapping tiles, feathered as `mop restore` does."""

    def __init__(
        self,
        network: TileRestorer,
        weights: str | Path,
        device: str | torch.device = "cpu",
        tile_px: int = 256,
        overlap_px: int = 64,
        batch: int = 1,
        binning: int | None = None,
    ) -> None:
        """Load the weights.

        Args:
            network: the bundle's `network_def`, with its options set.
            weights: its state dict.
            device: where to run.
            tile_px: side of a tile.
            overlap_px: px shared by neighbours.
            batch: tiles at once; changes the speed only.
            binning: see `restore_field`.

        Raises:
            FileNotFoundError: no such weights.
            ValueError: weights of another network.
        """
        load_weights(network, weights)
        self.device = torch.device(device)
        self.network = network.to(self.device).eval()
        self.tile_px, self.overlap_px, self.batch, self.binning = tile_px, overlap_px, batch, binning
        self.weights_sha256 = hashlib.sha256(Path(weights).read_bytes()).hexdigest()
        self.settings = {"tile_px": tile_px, "overlap_px": overlap_px, "binning": binning} | network.options

    def restore(self, image: Tensor) -> dict[str, Tensor]:
        """Both stages over the whole field; without "restored" where the chain stops after the P-former."""
        result = restore_field(self.network, image, self.tile_px, self.overlap_px, self.batch, self.binning)
        stages = {"coarse": result.coarse, "restored": result.restored}
        if self.network.stop_after == "p_former":
            del stages["restored"]
        return {name: field.to(image.device) for name, field in stages.items()}

    @torch.inference_mode()
    def estimate(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """What the defocus estimator reads off tiles (B, 3, h, w): signed µm (B,) and contrast (B,)."""
        estimates = [self.network.prompter.estimator(part.to(self.device)) for part in tiles.split(self.batch)]
        defocus_um = torch.cat([estimate.defocus_um for estimate in estimates])
        return defocus_um.to(tiles.device), torch.cat([estimate.contrast for estimate in estimates]).to(tiles.device)

    @torch.inference_mode()
    def prompt_errors(self, blurred: Tensor, sharp: Tensor) -> tuple[Tensor, Tensor] | None:
        """Mean squared distance of P_LP and of P_P to P_HP, each (B,); None without a prompt restorer."""
        prompter = self.network.prompter
        if prompter.restorer is None:
            return None
        errors = []
        for defocused, clear in zip(blurred.split(self.batch), sharp.split(self.batch), strict=True):
            tokens, truth = prompter.encoder(defocused.to(self.device)), prompter.encoder(clear.to(self.device))
            restored = prompter.restorer(tokens, prompter.estimator(defocused.to(self.device)).prompt)
            errors.append(torch.stack([(some - truth).square().mean((1, 2)) for some in (tokens, restored)]))
        before, after = torch.cat(errors, dim=1).to(blurred.device)
        return before, after
