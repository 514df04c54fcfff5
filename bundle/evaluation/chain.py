"""The chain as the protocol sees it: whole fields in, whole fields out, and what its prompts read off a tile.

Restoring gets the defocused image and nothing else; only `prompt_errors` is shown the sharp field, to score by.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from bundle.restoration import STAGES, TileRestorer
from bundle.slides.blend import BlockBlend
from bundle.slides.grid import TileGrid
from bundle.training.checkpoints import load_weights


class ChainOnFields:
    """A TileRestorer over a field by overlapping tiles, feathered as `mop restore` does."""

    def __init__(
        self,
        network: TileRestorer,
        weights: str | Path,
        device: str | torch.device = "cpu",
        tile_px: int = 256,
        overlap_px: int = 64,
        batch_size: int = 1,
        stop_after: str = "p_diffusion",
        seed: int = 0,
    ) -> None:
        """Load the weights.

        Args:
            network: the bundle's `network_def`.
            weights: its state dict.
            device: where to run.
            tile_px: side of a tile.
            overlap_px: px shared by neighbours.
            batch_size: tiles at once; changes the speed, not the pixels.
            stop_after: "p_former" for the coarse stage alone, or "p_diffusion".
            seed: of the noise.

        Raises:
            FileNotFoundError: no such weights.
            ValueError: weights of another network, or `stop_after` names no stage.
        """
        if stop_after not in STAGES:
            raise ValueError(f"stop_after must be one of {STAGES}, got {stop_after!r}.")
        load_weights(network, weights)
        network.stop_after, network.seed = stop_after, seed
        network.skip_in_focus = False  # every plane is scored as the network leaves it
        self.device = torch.device(device)
        self.network = network.to(self.device).eval()
        self.tile_px, self.overlap_px, self.batch_size = tile_px, overlap_px, batch_size
        self.weights_sha256 = hashlib.sha256(Path(weights).read_bytes()).hexdigest()
        self.settings = {"tile_px": tile_px, "overlap_px": overlap_px, "stop_after": stop_after, "seed": seed}

    @torch.inference_mode()
    def restore(self, image: Tensor) -> dict[str, Tensor]:
        """Both stages over the whole field; without "restored" where the chain stops after the P-former."""
        height, width = image.shape[-2:]
        grid = TileGrid(height, width, self.tile_px, self.overlap_px)
        coarse, restored = BlockBlend(grid, grid.image), BlockBlend(grid, grid.image)
        boxes = grid.tiles_of(grid.image)
        for start in range(0, len(boxes), self.batch_size):
            batch = boxes[start : start + self.batch_size]
            tiles = torch.stack([image[:, *box.within(grid.image)] for box in batch]).to(self.device)
            location = torch.tensor([(box.row, box.col) for box in batch], device=self.device)
            result = self.network.restore(tiles, location)
            for box, first, second in zip(batch, result.coarse.cpu(), result.restored.cpu(), strict=True):
                coarse.add(box, first)
                restored.add(box, second)
        stages = {"coarse": coarse, "restored": restored}
        if self.network.stop_after == "p_former":
            del stages["restored"]
        return {name: blend.result().clamp(0, 1).to(image.device) for name, blend in stages.items()}

    @torch.inference_mode()
    def estimate(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """What the defocus estimator reads off tiles (B, 3, h, w): signed µm (B,) and contrast (B,)."""
        estimates = [self.network.prompter.estimator(part.to(self.device)) for part in tiles.split(self.batch_size)]
        defocus_um = torch.cat([estimate.defocus_um for estimate in estimates])
        return defocus_um.to(tiles.device), torch.cat([estimate.contrast for estimate in estimates]).to(tiles.device)

    @torch.inference_mode()
    def prompt_errors(self, blurred: Tensor, sharp: Tensor) -> tuple[Tensor, Tensor] | None:
        """Mean squared distance of P_LP and of P_P to P_HP, each (B,); None without a prompt restorer."""
        prompter = self.network.prompter
        if prompter.restorer is None:
            return None
        errors = []
        for defocused, clear in zip(blurred.split(self.batch_size), sharp.split(self.batch_size), strict=True):
            tokens, truth = prompter.encoder(defocused.to(self.device)), prompter.encoder(clear.to(self.device))
            restored = prompter.restorer(tokens, prompter.estimator(defocused.to(self.device)).prompt)
            errors.append(torch.stack([(some - truth).square().mean((1, 2)) for some in (tokens, restored)]))
        before, after = torch.cat(errors, dim=1).to(blurred.device)
        return before, after
