"""Whole fields that fit into memory: tiles of one image through the chain and back, as a MONAI inferer.

    field --TileGrid--> tiles --TileRestorer--> tiles --BlockBlend--> field

Images of any size go through `slide_restoration`, with the same grid and the same feathering.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
import torch
from ignite.engine import Engine, Events
from monai.inferers import Inferer
from PIL import Image
from torch import Tensor, nn

from bundle.conventions import IMAGE, to_uint8
from bundle.restoration import PROBES, TileRestorer
from bundle.slides.blend import BlockBlend
from bundle.slides.grid import TileGrid
from bundle.slides.reader import PICTURE_SUFFIXES
from bundle.slides.whole_files import replace_when_done


class FieldRestoration(NamedTuple):
    """A restored field, on the CPU."""

    restored: Tensor  # (3, H, W), [0, 1]
    coarse: Tensor  # (3, H, W), [0, 1]
    focus_map_um: Tensor  # (1, H, W), signed
    seconds: dict[str, float]  # prompts, p_former, p_diffusion
    binning: int  # it was restored in


@torch.inference_mode()
def restore_field(network: TileRestorer, image: Tensor, tile_px: int = 256, overlap_px: int = 64,
                  batch: int = 1, binning: int | None = None) -> FieldRestoration:
    """Restore one field by overlapping tiles, feathered.

    Args:
        network: the chain, on its device.
        image: (3, H, W), [0, 1].
        tile_px: side of a tile.
        overlap_px: px shared by neighbours.
        batch: tiles at once; changes the speed only.
        binning: see `TileRestorer.restore`; None takes what the image itself says.
    """
    grid = TileGrid(image.shape[-2], image.shape[-1], tile_px, overlap_px)
    device = next(network.parameters()).device
    if binning is None:
        binning = network.binning_of(image[:, *box.within(grid.image)].to(device) for box in grid.some(PROBES))
    if binning > 1:  # so 2 x 2 pixels fill the network's tiles as before
        grid = TileGrid(image.shape[-2], image.shape[-1], tile_px * binning, overlap_px * binning)
    blends = {"restored": BlockBlend(grid, grid.image), "coarse": BlockBlend(grid, grid.image),
              "focus_map_um": BlockBlend(grid, grid.image, 1)}
    seconds: dict[str, float] = {}
    boxes = grid.tiles_of(grid.image)
    for start in range(0, len(boxes), batch):
        part = boxes[start:start + batch]
        tiles = torch.stack([image[:, *box.within(grid.image)] for box in part]).to(device)
        result = network.restore(tiles, torch.tensor([(box.row, box.col) for box in part], device=device), binning)
        for name, blend in blends.items():
            for box, tile in zip(part, getattr(result, name).cpu(), strict=True):
                blend.add(box, tile)
        seconds = {stage: seconds.get(stage, 0.0) + spent for stage, spent in result.seconds.items()}
    parts = {name: blend.result() for name, blend in blends.items()}
    return FieldRestoration(**parts, seconds=seconds, binning=binning)


class TiledInferer(Inferer):
    """`restore_field` as the inferer of a MONAI evaluator; keeps the details of its last call for `SaveFields`."""

    def __init__(self, tile_px: int = 256, overlap_px: int = 64, batch: int = 1, binning: int | None = None) -> None:
        super().__init__()
        self.tile_px, self.overlap_px, self.batch, self.binning = tile_px, overlap_px, batch, binning
        self.last: list[FieldRestoration] = []

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Restored fields (B, 3, H, W) of fields (B, 3, H, W) in [0, 1]; `network` is a TileRestorer."""
        assert isinstance(network, TileRestorer)
        options = (self.tile_px, self.overlap_px, self.batch, self.binning)
        self.last = [restore_field(network, field, *options) for field in inputs]
        return torch.stack([field.restored for field in self.last])


class SaveFields:
    """Writes what the inferer made of every field: `<name>_restored.png`, `_coarse.png`, `_focus_um.tiff`,
    `_timings.json`.

    Args:
        output_dir: created if needed.
        inferer: of the evaluator.
    """

    def __init__(self, output_dir: str | Path, inferer: TiledInferer) -> None:
        self.output_dir, self.inferer = Path(output_dir), inferer

    def attach(self, engine: Engine) -> None:
        """After every batch."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.save)

    def save(self, engine: Engine) -> None:
        """Write the files of one batch."""
        names = [Path(path).stem for path in engine.state.batch["path"]]
        for name, field in zip(names, self.inferer.last, strict=True):
            for part in ("restored", "coarse"):
                pixels = to_uint8(getattr(field, part)).permute(1, 2, 0).numpy()
                with replace_when_done(self.output_dir / f"{name}_{part}.png", overwrite=True) as file:
                    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")
            with replace_when_done(self.output_dir / f"{name}_focus_um.tiff", overwrite=True) as file:
                tifffile.imwrite(file, field.focus_map_um[0].numpy())
            with replace_when_done(self.output_dir / f"{name}_timings.json", overwrite=True) as file:
                file.write(json.dumps(field.seconds | {"binning": field.binning}, indent=2).encode())


def image_records(folder: str | Path) -> list[dict[str, str]]:
    """MONAI records of the images of a folder, `{"image": path, "path": path}`, sorted by name.

    Raises:
        FileNotFoundError: no such folder, or no PNG, JPEG or TIFF in it.
        ValueError: two images whose results would have one name.
    """
    found = sorted(path for path in Path(folder).glob("*") if path.suffix.lower() in PICTURE_SUFFIXES)
    if not found:
        raise FileNotFoundError(f"a folder of images must hold PNG, JPEG or TIFF files, got none in {folder}.")
    for one, other in itertools.pairwise(sorted(found, key=lambda path: path.stem)):
        if one.stem == other.stem:
            raise ValueError(f"results are named without the suffix, {one.name} and {other.name} would be one: rename.")
    return [{IMAGE: str(path), "path": str(path)} for path in found]
