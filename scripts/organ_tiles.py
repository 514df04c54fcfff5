"""python scripts/organ_tiles.py ../shared/data/tiles tiles

A stand-in for the labelled tiles of table 3, whose images are not published: oral mucosa (1) or breast (0), 16 tiles of
128 px of each slide in a folder of sharp fields. Writes `labels.csv` (name, label, slide, split), `sharp/`, and `low/`:
the tiles of val and test 2.4 µm above focus as a 40x scanner records them. Those of train, from which restoration
learned, only teach the classifier.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bundle.conventions import from_uint8, to_uint8
from bundle.messages import as_program
from bundle.optics.camera import Camera, record
from bundle.optics.focal_stack import MARGIN_PX, GainTable, random_relief_um, simulate_plane
from bundle.optics.pupil import OPTICS_40X
from bundle.preparation.patches import tissue_mask

LABELS = {"breast": 0, "oral mucosa": 1}
TILES, TILE_PX = 16, 128  # of each slide
POSITION_UM, RELIEF_UM = 2.4, 0.5
LEAST_TISSUE = 0.5  # share of a tile


class Tile(NamedTuple):
    """A tile with the border that blurring looks at."""

    name: str
    pixels: NDArray[np.uint8]  # (3, H, W)


def tiles_of(file: Path) -> list[Tile]:
    """Tiles of a field, side by side, that show tissue."""
    with Image.open(file) as image:
        field = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    found = []
    for row in range(MARGIN_PX, field.shape[1] - TILE_PX - MARGIN_PX + 1, TILE_PX):
        for col in range(MARGIN_PX, field.shape[2] - TILE_PX - MARGIN_PX + 1, TILE_PX):
            pixels = field[:, row - MARGIN_PX:row + TILE_PX + MARGIN_PX, col - MARGIN_PX:col + TILE_PX + MARGIN_PX]
            if tissue_mask(pixels).mean() > LEAST_TISSUE:
                found.append(Tile(f"{file.stem}_{row}_{col}", pixels))
    return found


def save(image: Tensor, file: Path) -> None:
    """The tile without its border."""
    inside = image[:, MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(to_uint8(inside).permute(1, 2, 0).contiguous().numpy()).save(file)


@as_program
def main(typed: list[str] | None = None) -> None:
    """Choose, defocus and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fields", type=Path, help="folder of sharp fields; index.json names organ, slide and split")
    parser.add_argument("output", type=Path, help="folder of the tiles")
    chosen = parser.parse_args(typed)
    entries = [entry for entry in json.loads((chosen.fields / "index.json").read_text(encoding="utf-8"))
               if entry["organ"] in LABELS]
    table = GainTable(OPTICS_40X, reach_um=POSITION_UM + 1.0, grid_px=128)
    rows: list[tuple[str, int, str, str]] = []
    for number, slide in enumerate(sorted({entry["slide"] for entry in entries})):
        of_slide = [entry for entry in entries if entry["slide"] == slide]
        split = of_slide[0]["split"]
        tiles = [tile for entry in of_slide for tile in tiles_of(chosen.fields / entry["file"])]
        for place in sorted(np.random.default_rng(number).choice(len(tiles), TILES, replace=False).tolist()):
            generator = torch.Generator().manual_seed(1000 * number + place)
            sharp = from_uint8(torch.from_numpy(tiles[place].pixels.copy()))
            save(sharp, chosen.output / "sharp" / f"{tiles[place].name}.png")
            rows.append((tiles[place].name, LABELS[of_slide[0]["organ"]], slide, split))
            if split == "train":
                continue
            relief_um = random_relief_um(sharp.shape[1], sharp.shape[2], RELIEF_UM, generator)
            recorded = record(simulate_plane(sharp, POSITION_UM, relief_um, table), Camera(), generator)
            save(recorded, chosen.output / "low" / f"{tiles[place].name}.png")
    with (chosen.output / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("name", "label", "slide", "split"), *rows])
    print(f"{len(rows)} tiles, {sum(row[1] for row in rows)} of oral mucosa: {chosen.output / 'labels.csv'}")


if __name__ == "__main__":
    raise SystemExit(main())
