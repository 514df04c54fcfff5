"""Look at every field of a split: input, coarse, restored and truth at four planes, one PNG a field.

    python scripts/contact_sheet.py path/to/fields --split test --output evaluation/sheets
    python scripts/contact_sheet.py path/to/fields --planes 0.8 1.6 2.4 4.8 --side 256 --limit 3

Reads   a folder of sharp fields (index.json or plain images), the network and weights of configs/evaluate.json
Writes  <output>/<field>.png: a row a plane, the field's centre at full size, PSNR and SSIM under each picture

The planes are those of `make evaluate`: same seed, same tissue relief; here the chain sees the centre only.
A sheet of four 256 px planes takes about 10 s on 2 cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from monai.bundle import ConfigParser
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rich.progress import track
from torch import Tensor

from bundle.conventions import to_uint8
from bundle.evaluation.fields import FocalField, list_fields, read_field
from bundle.evaluation.scores import FieldRestorer
from bundle.messages import as_program
from bundle.optics.camera import Camera
from bundle.slides.whole_files import replace_when_done
from bundle.training.metrics import psnr, ssim

ROOT = Path(__file__).resolve().parent.parent
GAP_PX, TEXT_PX = 6, 16
LABEL_PX = 70  # width of the column that names the planes


def load_restorer(config: Path, weights: Path) -> tuple[FieldRestorer, dict[str, float]]:
    """The restorer of an evaluation config, and the numbers of its simulation."""
    parser = ConfigParser()
    parser.read_config(str(config))
    parser["weights"] = str(weights)
    numbers = {name: parser.get_parsed_content(name) for name in ("relief_um", "jpeg_quality", "mpp", "seed")}
    restorer: FieldRestorer = parser.get_parsed_content("inferer")
    return restorer, numbers


def draw_sheet(field: FocalField, restorer: FieldRestorer, planes_um: Sequence[float]) -> Image.Image:
    """A row a plane, a column a picture."""
    side_rows, side_columns = field.sharp.shape[-2:]
    step_rows, step_columns = side_rows + TEXT_PX + GAP_PX, side_columns + GAP_PX
    size = (LABEL_PX + 4 * step_columns, TEXT_PX + GAP_PX + len(planes_um) * step_rows)
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for column, title in enumerate(("input", "coarse", "restored", "truth")):
        pen.text((LABEL_PX + column * step_columns, 2), title, "black", font)
    for row, position_um in enumerate(planes_um):
        top = TEXT_PX + GAP_PX + row * step_rows
        pen.text((4, top), f"{position_um:+.1f} um", "black", font)  # the font has no µ
        image = field.plane(position_um)
        stages = restorer.restore(image)
        pictures = (image, stages["coarse"], stages.get("restored", stages["coarse"]), field.sharp)
        for column, picture in enumerate(pictures):
            left = LABEL_PX + column * step_columns
            sheet.paste(Image.fromarray(pixels_of(picture)), (left, top))
            if picture is not field.sharp:
                pair = picture[None], field.sharp[None]
                figures = f"{psnr(*pair).item():.2f} dB   {ssim(*pair).item():.3f}"
                pen.text((left, top + side_rows + 1), figures, "black", font)
    return sheet


def pixels_of(image: Tensor) -> NDArray[np.uint8]:
    """(3, H, W) in [0, 1] -> (H, W, 3) uint8."""
    return np.ascontiguousarray(to_uint8(image).permute(1, 2, 0).cpu().numpy())


@as_program
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, draw, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fields", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--planes", type=float, nargs="+", default=[0.0, 0.8, 1.6, 3.2], help="stage positions, µm")
    parser.add_argument("--side", type=int, default=256, help="side of the centred square, px; 0 for the whole field")
    parser.add_argument("--limit", type=int, default=0, help="at most this many fields; 0 for all")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "evaluate.json")
    parser.add_argument("--weights", type=Path, default=ROOT / "models" / "model.pt")
    parser.add_argument("--output", type=Path, default=ROOT / "evaluation" / "sheets")
    options = parser.parse_args(arguments)
    restorer, numbers = load_restorer(options.config, options.weights)
    fields = list_fields(options.fields, options.split, numbers["mpp"])[: options.limit or None]
    camera = Camera(jpeg_quality=int(numbers["jpeg_quality"]))
    for field in track(fields, "sheets"):
        sharp = read_field(field, options.side).to(restorer.device)
        focal = FocalField(field, sharp, numbers["relief_um"], camera, int(numbers["seed"]))
        with torch.inference_mode():
            sheet = draw_sheet(focal, restorer, options.planes)
        path = options.output / (field.name.replace("/", "__").rsplit(".", 1)[0] + ".png")
        with replace_when_done(path, overwrite=True) as file:
            sheet.save(file, "PNG")
    print(f"{len(fields)} sheets in {options.output}")


if __name__ == "__main__":
    raise SystemExit(main())
