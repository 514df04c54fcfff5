"""One field through the protocol: its planes, simulated or read, are restored as wholes and scored against the truth.

The record of a field is plain JSON: that is what a killed evaluation goes on from, and what the tables are averaged of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from bundle.evaluation.fields import Field
from bundle.evaluation.recorded import RecordedField
from bundle.evaluation.restored_images import RestoredImages
from bundle.optics.contrast import contrast_value
from bundle.training.metrics import Lpips, colour_shift, psnr, ssim, ssim_uniform

METRICS = ("psnr", "ssim", "ssim_uniform", "lpips")
Figures = dict[str, float | None]  # None: not measured
Baseline = Callable[[Tensor], Tensor]  # (B, 3, H, W) -> (B, 3, H, W)


class Stack(Protocol):
    """A field at any of its planes: simulated (`FocalField`) or recorded (`RecordedStack`)."""

    @property
    def field(self) -> Field | RecordedField:
        """Which one."""

    sharp: Tensor  # (3, H, W) [0, 1], what is scored against

    def plane(self, position_um: float) -> Tensor:
        """(3, H, W) in [0, 1]."""

    def plane_name(self, position_um: float) -> str:
        """Under which name an image of another method is looked for."""

    def defocus_um(self, position_um: float) -> Tensor:
        """Signed defocus of every pixel of that plane, (H, W)."""


class FieldRestorer(Protocol):
    """Anything that restores whole fields can be evaluated."""

    weights_sha256: str | None
    settings: Mapping[str, object]  # whatever changes the pixels; finished fields of other settings are scored again
    device: torch.device

    def restore(self, image: Tensor) -> dict[str, Tensor]:
        """(3, H, W) in [0, 1] -> results by method's name, each (3, H, W), in the order of the table."""

    def estimate(self, tiles: Tensor) -> tuple[Tensor, Tensor] | None:
        """Tiles (B, 3, h, w) -> signed defocus in µm (B,) and contrast (B,); None: it does not estimate."""

    def prompt_errors(self, blurred: Tensor, sharp: Tensor) -> tuple[Tensor, Tensor] | None:
        """Mean squared distance to the sharp tile's tokens of the blurred and of the restored tokens, each (B,)."""


class FieldScorer:
    """Scores every method on every plane of a field."""

    def __init__(
        self,
        restorer: FieldRestorer,
        baselines: Mapping[str, Baseline],
        lpips: Lpips,
        tile_px: int = 256,
        given: Mapping[str, RestoredImages] | None = None,
    ) -> None:
        """Keep the parts.

        Args:
            restorer: the method under test.
            baselines: what stands beside it, by name.
            lpips: from `load_lpips`.
            tile_px: side of the tiles on which the prompts are scored.
            given: methods of which only the images are known, by name.
        """
        self.restorer, self.baselines, self.lpips, self.tile_px = restorer, baselines, lpips, tile_px
        self.given = given or {}
        if lpips.distance is not None:
            lpips.distance.to(restorer.device)

    def score(
        self, field: Stack, positions_um: Sequence[float], advance: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        """The record of one field; `advance` is called after each plane."""
        planes = []
        for position_um in positions_um:
            planes.append(self._score_plane(field, position_um))
            advance()
        height, width = field.sharp.shape[-2:]
        identity = {"name": field.field.name, "slide": field.field.slide, "mpp": field.field.mpp}
        return identity | {"height": height, "width": width, "planes": planes}

    @torch.inference_mode()
    def results(self, field: Stack, position_um: float) -> dict[str, Tensor]:
        """What every method makes of a plane, (3, H, W) each, the plane itself first, as "input"."""
        image = field.plane(position_um)
        results = {"input": image} | {name: method(image[None])[0] for name, method in self.baselines.items()}
        for name, images in self.given.items():
            results[name] = images.read(field, position_um, image)
        return results | self.restorer.restore(image)  # sees the plane only

    @torch.inference_mode()
    def _score_plane(self, field: Stack, position_um: float) -> dict[str, Any]:
        results = self.results(field, position_um)
        image, apart = results["input"], {"input", *self.baselines, *self.given}
        return {
            "defocus_um": round(position_um, 3),
            "methods": {name: self._figures(result, field.sharp) for name, result in results.items()},
            "colour": {name: _colour_figures(result, image) for name, result in results.items() if name not in apart},
            "tiles": self._score_prompts(field, position_um, image),
        }

    def _figures(self, result: Tensor, sharp: Tensor) -> Figures:
        pair = result[None], sharp[None]
        distance = None if self.lpips.distance is None else float(self.lpips.distance(*pair))
        figures: Figures = {"psnr": float(psnr(*pair)), "ssim": float(ssim(*pair))}
        return figures | {"ssim_uniform": float(ssim_uniform(*pair)), "lpips": distance}

    def _score_prompts(self, field: Stack, position_um: float, image: Tensor) -> dict[str, list[float | None]]:
        """What the prompts read off the field's tiles, and the truth beside it: lists with one entry per tile."""
        blurred, sharp = _tiles(image, self.tile_px), _tiles(field.sharp, self.tile_px)
        columns: dict[str, Tensor] = {}
        estimate = self.restorer.estimate(blurred)
        if estimate is not None:
            true_um = _tiles(field.defocus_um(position_um)[None], self.tile_px).flatten(1).median(dim=1).values
            columns |= {"defocus_um": estimate[0], "true_defocus_um": true_um, "contrast": estimate[1]}
            columns["true_contrast"] = contrast_value(blurred, sharp, field.field.mpp)
        errors = self.restorer.prompt_errors(blurred, sharp)
        if errors is not None:
            columns |= {"blurred_tokens_mse": errors[0], "restored_tokens_mse": errors[1]}
        return {name: [_finite(value) for value in column.tolist()] for name, column in columns.items()}


def _colour_figures(result: Tensor, image: Tensor) -> Figures:
    """Grey levels of 255 by which a result moved the mean colour of the input's 64 px blocks."""
    shift = colour_shift(result[None], image[None])
    return {"mean": float(shift.mean()), "max": float(shift.max())}


def _tiles(image: Tensor, tile_px: int) -> Tensor:
    """Tiles side by side from the upper left corner, (C, H, W) -> (B, C, h, w); a small image is one tile."""
    height, width = min(tile_px, image.shape[-2]), min(tile_px, image.shape[-1])
    rows = image.unfold(1, height, height).unfold(2, width, width)  # (C, rows, columns, h, w)
    return rows.flatten(1, 2).transpose(0, 1).contiguous()


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
