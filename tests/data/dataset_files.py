"""A small dataset as `mop prepare` writes it, made without registering and fusing anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from scipy import ndimage

from bundle.data.datalist import DATALIST
from bundle.data.phantom import tissue_phantom
from bundle.preparation.patches import label_patches

POSITIONS_UM = (-0.8, 0.0, 0.8)
BLUR_PX = (1.6, 0.0, 2.2)
SECTIONS = {"A1": "training", "B2": "training", "C3": "validation", "D4": "testing"}


def write_dataset(folder: Path, height: int = 272, width: int = 300, slides: dict[str, str] | None = None) -> Path:
    """One field of three planes per slide; the tissue tilts by 0.6 µm from left to right. Slide -> section."""
    held: dict[str, Any] = {"patch_px": 256, "training": [], "validation": [], "testing": []}
    for seed, (slide, section) in enumerate((slides or SECTIONS).items()):
        place = folder / "fields" / f"{slide}_1"
        place.mkdir(parents=True)
        sharp = tissue_phantom(height, width, torch.Generator().manual_seed(seed)).numpy()
        target = (sharp * 255).round().astype(np.uint8)
        planes = np.stack([(ndimage.gaussian_filter(sharp, (0, blur, blur)) * 255).round() for blur in BLUR_PX])
        planes = planes.astype(np.uint8)
        depth_um = np.tile(np.linspace(-0.3, 0.3, width, dtype=np.float32), (height, 1))
        for name, pixels in [("label", target), *((f"plane_{k:02d}", plane) for k, plane in enumerate(planes))]:
            tifffile.imwrite(place / f"{name}.tif", pixels.transpose(1, 2, 0), tile=(256, 256), photometric="rgb",
                             compression="lzw")
        tifffile.imwrite(place / "depth_um.tif", depth_um, compression="zlib", predictor=3)
        middle = np.full((height, width), 1.0, np.float32)
        patches, _ = label_patches(planes, target, depth_um, middle, np.array(POSITIONS_UM, np.float32), 0.25)
        name = f"fields/{place.name}"
        held[section] += [{
            "image": f"{name}/plane_{k:02d}.tif", "label": f"{name}/label.tif", "depth": f"{name}/depth_um.tif",
            "slide": slide, "field": place.name, "patient": None, "mpp": 0.25, "plane": k,
            "position_um": POSITIONS_UM[k], "location": [list(patch.location) for patch in patches],
            "defocus_um": [patch.defocus_um[k] for patch in patches],
            "contrast": [patch.contrast[k] for patch in patches]} for k in range(len(planes))]
    (folder / DATALIST).write_text(json.dumps(held), encoding="utf-8")
    return folder


def changed(folder: Path, change: Any) -> None:
    """`change` is given the datalist's content and may change it."""
    held = json.loads((folder / DATALIST).read_text(encoding="utf-8"))
    change(held)
    (folder / DATALIST).write_text(json.dumps(held), encoding="utf-8")
