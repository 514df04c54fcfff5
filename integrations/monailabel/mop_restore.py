"""MONAI Label's request -> region -> chain -> PNG or TIFF.

The stock task of a bundle writes label maps and takes the axes of a volume; this one reads and writes pictures as
`mop restore` does, so that nothing is transposed, and slides are read by region: `location`, `size` and `level` of a
request are those of bundle/slides/region.py.
"""

from __future__ import annotations

import hashlib
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
from fastapi import HTTPException
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from numpy.typing import NDArray
from PIL import Image

from bundle.image_restorer import ImageRestorer
from bundle.loading import CONFIG, WEIGHTS, load_tile_restorer
from bundle.messages import sentence
from bundle.restoration import STAGES
from bundle.slides.reader import open_image
from bundle.slides.region import Region, read_region, region_of, whole

SUFFIXES = (".png", ".tif")


class Wishes(NamedTuple):
    """What a request may choose."""

    stop_after: str
    seed: int
    skip_in_focus: bool
    region: Region
    suffix: str


def wishes_of(request: dict[str, Any]) -> Wishes:
    """The parameters of a request.

    Raises:
        ValueError: one is out of range or of another type.
    """
    stop_after, suffix = request.get("stop_after", "p_diffusion"), request.get("result_extension") or ".png"
    if stop_after not in STAGES:
        raise ValueError(f"stop_after must be one of {STAGES}, got {stop_after!r}.")
    if suffix not in SUFFIXES:
        raise ValueError(f"result_extension must be one of {SUFFIXES}, got {suffix!r}.")
    skip = request.get("skip_in_focus", False)
    if not isinstance(skip, bool):
        raise ValueError(f"skip_in_focus must be true or false, got {skip!r}.")
    return Wishes(stop_after, whole("seed", request.get("seed", 0)), skip, region_of(request), suffix)


class RestoreTask(InferTask):
    """The chain as a task of MONAI Label.

    Args:
        trained: weights that training on pairs has written; while there are none, the shipped ones.
        device: "cpu" or "cuda".
    """

    def __init__(self, trained: Path, device: str) -> None:
        super().__init__(InferType.OTHERS, [], 2, "Brings an out-of-focus picture or region into focus",
                         {"stop_after": "p_diffusion", "seed": 0, "skip_in_focus": False})
        self._trained, self._device = trained, device
        self._alone = threading.Lock()
        self._loaded: tuple[Path, int] | None = None  # weights and the time they were written
        self._restorer: ImageRestorer | None = None
        self._digest = ""

    def is_valid(self) -> bool:
        """Weights are shipped, so always."""
        return True

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Restore what a request names.

        Returns:
            The result's file, which the server removes when it is sent, and what to say beside it.

        Raises:
            HTTPException: with one sentence: 404, the datastore has no such image; 400, it is none that can be
                restored, or a parameter is out of range.
        """
        if not request["image"]:
            raise HTTPException(404, "an image must be a file or be in the datastore, it has none so named.")
        try:
            wishes = wishes_of(request)
            with open_image(request["image"]) as reader:
                region, binning = read_region(reader, wishes.region), 1 if reader.is_slide else None
            started = time.monotonic()
            with self._alone:
                restorer = self._ready()
                network = restorer.network
                network.stop_after, network.seed, network.skip_in_focus = wishes[:3]
                restorer.binning = binning  # a scanner's camera fits its optics
                result = restorer.restore(region)
        except (ValueError, OSError) as error:
            raise HTTPException(400, sentence(error)) from error
        said = {"width": region.shape[1], "height": region.shape[0], "location": wishes.region.location,
                "level": wishes.region.level, "seconds": round(time.monotonic() - started, 3),
                "mean_defocus_um": float(np.abs(np.asarray(result.focus_map_um)).mean()),
                "binning": result.binning[0], "weights_sha256": self._digest}
        return write_result(result.restored, wishes.suffix), said

    def _ready(self) -> ImageRestorer:
        """The chain with the newest weights."""
        weights = self._trained if self._trained.is_file() else WEIGHTS
        written = weights, weights.stat().st_mtime_ns
        if self._restorer is None or self._loaded != written:
            self._restorer = ImageRestorer(load_tile_restorer(CONFIG, weights, self._device))
            self._digest, self._loaded = hashlib.sha256(weights.read_bytes()).hexdigest(), written
        return self._restorer


def write_result(pixels: NDArray[np.uint8], suffix: str) -> str:
    """A temporary PNG or lossless TIFF of (H, W, 3)."""
    with tempfile.NamedTemporaryFile(prefix="restored_", suffix=suffix, delete=False) as file:
        if suffix == ".png":
            Image.fromarray(pixels).save(file, "PNG")
        else:
            tifffile.imwrite(file, pixels, photometric="rgb", compression="lzw")
        return file.name
