"""One line of Python: `load_restorer()(image)`, for pictures that a script or a notebook holds in memory.

    numpy array   (H, W, 3), uint8 0..255 or floating [0, 1]
    PIL image     mode RGB
    tensor        (3, H, W) or (B, 3, H, W), uint8 0..255 or floating [0, 1], on any device

What comes back has the type, the dtype, the shape and the device of what went in. Pictures of any size go by
overlapping tiles, as in `mop restore`: an 8-bit picture gets the very pixels that the command writes of it alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bundle.conventions import from_uint8, to_uint8
from bundle.field_restoration import FieldRestoration, restore_field
from bundle.loading import CONFIG, WEIGHTS, load_tile_restorer
from bundle.restoration import STAGES, TileRestorer, check_binning
from bundle.slides.grid import TileGrid
from bundle.slides.reader import MIN_SIDE_PX

Picture = TypeVar("Picture", NDArray[Any], Image.Image, Tensor)


class RestoredPicture(NamedTuple, Generic[Picture]):
    """A restored picture and what was learned on the way."""

    restored: Picture
    coarse: Picture  # after the P-former
    focus_map_um: NDArray[np.float32] | Tensor  # signed; (H, W), or (..., 1, H, W) where the picture is a tensor
    binning: tuple[int, ...]  # of each picture


class ImageRestorer:
    """The chain on pictures in memory; `load_restorer` makes one.

    Args:
        network: the chain, on its device and with its options set.
        tile_px: side of a tile.
        batch: tiles at once.
        binning: see `TileRestorer.restore`; None takes what each picture itself says.

    Raises:
        ValueError: `tile_px`, `batch` or `binning` is out of range.
    """

    def __init__(self, network: TileRestorer, tile_px: int = 256, batch: int = 1, binning: int | None = None) -> None:
        if batch < 1 or tile_px < MIN_SIDE_PX:
            raise ValueError(f"batch must be positive and tile_px at least {MIN_SIDE_PX}, got {batch} and {tile_px}.")
        check_binning(binning)
        TileGrid(1, 1, tile_px, tile_px // 4)  # states its rules before an image comes
        self.network, self.tile_px, self.batch, self.binning = network, tile_px, batch, binning

    def __call__(self, image: Picture) -> Picture:
        """The restored picture, of the kind that went in; see `restore`."""
        return self.restore(image).restored

    def restore(self, image: Picture) -> RestoredPicture[Picture]:
        """Restore a picture and keep what was learned on the way.

        Args:
            image: RGB; see the module for the kinds.

        Raises:
            TypeError: no array, PIL image or tensor, or one of another dtype.
            ValueError: no RGB picture, a side below 32 px, or floating values outside [0, 1].
        """
        pixels = _as_batch(image)  # (B, 3, H, W), [0, 1], on the CPU
        options = (self.tile_px, self.tile_px // 4, self.batch, self.binning)
        fields = [restore_field(self.network, one, *options) for one in pixels]
        parts = _like(image, fields, "restored"), _like(image, fields, "coarse"), _focus(image, fields)
        return RestoredPicture(*parts, tuple(field.binning for field in fields))


def load_restorer(*, device: str = "cpu", seed: int = 0, stop_after: str = "p_diffusion", skip_in_focus: bool = False,
                  weights: str | Path | None = None, config: str | Path | None = None, tile_px: int = 256,
                  batch: int = 1, binning: int | None = None) -> ImageRestorer:
    """The shipped chain, ready for pictures.

    Args:
        device: "cpu" or "cuda".
        seed: of P-diffusion's noise; the same seed gives the same pixels.
        stop_after: "p_diffusion" for the whole chain, "p_former" for the coarse stage alone.
        skip_in_focus: leave what is in focus untouched.
        weights: another models/model.pt.
        config: another configs/inference.json. A config may run code: use those you trust.
        tile_px: side of a tile.
        batch: tiles at once; on a CPU 1 is as fast as any.
        binning: 2 for a camera that oversamples, 1 for one that does not; None takes what each picture itself says.

    Raises:
        FileNotFoundError: config or weights are missing.
        ValueError: an option is out of range, the device is not there, or the weights do not fit.
    """
    if stop_after not in STAGES:
        raise ValueError(f"stop_after must be one of {STAGES}, got {stop_after!r}.")
    network = load_tile_restorer(Path(config or CONFIG), Path(weights or WEIGHTS), device)
    network.stop_after, network.skip_in_focus, network.seed = stop_after, skip_in_focus, seed
    return ImageRestorer(network, tile_px, batch, binning)


def _as_batch(image: NDArray[Any] | Image.Image | Tensor) -> Tensor:
    """Any kind of picture -> (B, 3, H, W) float32 [0, 1] on the CPU."""
    if isinstance(image, Tensor):
        pixels = image.detach().cpu()
    elif isinstance(image, Image.Image):
        if image.mode != "RGB":
            raise ValueError(f"a PIL image must have mode RGB, got {image.mode}: image.convert('RGB') makes it so.")
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    elif isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"an array must have shape (H, W, 3), got {image.shape}.")
        if image.dtype not in (np.uint8, np.float16, np.float32, np.float64):
            raise TypeError(f"an array must be uint8 or floating, got {image.dtype}.")
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    else:
        raise TypeError(f"an image must be a numpy array, a PIL image or a tensor, got {type(image).__name__}.")
    if pixels.ndim not in (3, 4) or pixels.shape[-3] != 3 or not len(pixels):
        raise ValueError(f"a tensor must have shape (3, H, W) or (B, 3, H, W), got {tuple(pixels.shape)}.")
    if min(pixels.shape[-2:]) < MIN_SIDE_PX:
        size = f"{pixels.shape[-2]} x {pixels.shape[-1]}"
        raise ValueError(f"an image must have at least {MIN_SIDE_PX} x {MIN_SIDE_PX} px, got {size}.")
    return _as_unit(pixels).reshape(-1, *pixels.shape[-3:]).contiguous()


def _as_unit(pixels: Tensor) -> Tensor:
    if pixels.dtype == torch.uint8:
        return from_uint8(pixels)
    if not pixels.is_floating_point():
        raise TypeError(f"an image must be uint8 or floating, got {pixels.dtype}.")
    low, high = float(pixels.min()), float(pixels.max())
    # NaN fails both comparisons.
    if not (low >= 0 and high <= 1):
        raise ValueError(f"a floating image must lie in [0, 1], got {low:.4g} to {high:.4g}.")
    return pixels.float()


def _like(image: Picture, fields: list[FieldRestoration], part: str) -> Picture:
    """One part of the restored fields as a picture of the kind of `image`."""
    pixels = torch.stack([getattr(field, part) for field in fields])
    if isinstance(image, Tensor):
        pixels = to_uint8(pixels) if image.dtype == torch.uint8 else pixels.to(image.dtype)
        return pixels.reshape(image.shape).to(image.device)
    pixels = pixels[0].permute(1, 2, 0)
    if isinstance(image, Image.Image):
        result = Image.fromarray(to_uint8(pixels).contiguous().numpy())
        result.info = dict(image.info)  # resolution and colour profile: pixels are never converted by it
        return result
    array = (to_uint8(pixels) if image.dtype == np.uint8 else pixels).contiguous().numpy()
    return array.astype(image.dtype, copy=False)


def _focus(image: NDArray[Any] | Image.Image | Tensor, fields: list[FieldRestoration]) -> NDArray[np.float32] | Tensor:
    if isinstance(image, Tensor):
        maps = torch.stack([field.focus_map_um for field in fields])
        return maps.reshape(*image.shape[:-3], 1, *image.shape[-2:]).to(image.device)
    return fields[0].focus_map_um[0].numpy()
