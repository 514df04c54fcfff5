"""Signs of doubt about a restored tile, none of which needs the truth.

    I, C, R      input, P-former's output, result               (B, 3, H, W), [0, 1]
    B            R defocused by a distance                       what the scanner would have recorded of R
    <x>          Gaussian mean around a pixel, `WINDOW_PX`, and over the colours

    reblur       sqrt(max(0, <(B - I)²> - σ²))    what of the input the result does not explain; σ: the input's noise;
                 B by the estimated distances or by the one of `DISTANCES_UM` that explains a place best: the estimator
                 errs at times, and a result is not to be doubted for that
    spread       sqrt(<variance over the seeds>)  what P-diffusion's noise decided, and not the input
    edges        sqrt(<max(0, |∇R| - S)²>)        edges that neither the P-former nor the input's contrast supports:
                 S = the larger of |∇C| and |∇I| / contrast, the largest value within `TOLERANCE_PX`
    doubt        weights · (reblur, spread, edges) · 255: the mean absolute error to expect, grey levels of 255

The weights come from simulated planes whose truth is known (scripts/measure_trust.py); what they are worth stands in
docs/slides.md.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from bundle.optics.binning import binned, unbinned
from bundle.optics.camera import smoothed
from bundle.optics.focal_stack import GainTable, defocus, to_linear, to_srgb
from bundle.optics.pupil import standard_optics

if TYPE_CHECKING:
    from bundle.restoration import Restoration

WINDOW_PX = 12.0  # deviation of the Gaussian mean
TOLERANCE_PX = 3  # an edge that lies this far beside its support is the same edge
LEAST_CONTRAST = 0.2  # below it the input's own edges are noise, and no support
DISTANCES_UM = tuple(0.8 * k for k in range(-6, 7))
FALLBACKS = ("coarse", "input")
SIGNS = ("reblur", "spread", "edges")
LAYERS = (*SIGNS, "reverted")


class Weights(NamedTuple):
    """Expected error per unit of each sign; a single sample has no spread and weighs the others otherwise."""

    reblur: float
    spread: float
    edges: float


# Of the weights of models/model.pt, by `python scripts/measure_trust.py DATA --split val --crop-px 512 --fit`.
ONE_SAMPLE = Weights(2.1, 0.0, 24.0)
MANY_SAMPLES = Weights(0.6, 3.3, 0.0)
LIMIT = 15.0  # doubt above which a place is untrusted, grey levels of 255; docs/slides.md says how many cells are


class Judgement(NamedTuple):
    """A batch of tiles with the doubt about them."""

    pixels: Tensor  # (B, 3, H, W), the result, with what was reverted
    layers: Tensor  # (B, 4, H, W), `LAYERS`: the signs in [0, 1], the share that was reverted


class TrustGauge:
    """Judges restored tiles.

    Args:
        mpp: µm per pixel of the image.
        fallback: what untrusted places are replaced with, "coarse" or "input"; "" changes no pixel.
        limit: doubt above which a place is untrusted, grey levels of 255.

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(self, mpp: float, fallback: str = "", limit: float = LIMIT) -> None:
        if fallback and fallback not in FALLBACKS:
            raise ValueError(f"fallback must be one of {', '.join(FALLBACKS)}, got {fallback}.")
        if limit <= 0:
            raise ValueError(f"limit must be positive, got {limit}.")
        self.fallback, self.limit = fallback, limit
        self.table = _table(mpp)

    def judge(self, image: Tensor, restoration: Restoration) -> Judgement:
        """The doubt about restored tiles, and their pixels where none of it is above the limit.

        Args:
            image: (B, 3, H, W), [0, 1].
            restoration: of them.
        """
        whole, binning = image, restoration.binning
        # The signs are told in 2 x 2 pixels where an image is binned: blur and edges are as wide there as in the table.
        image, restored, coarse, focus_map_um = (
            binned(x, binning) for x in (image, restoration.restored, restoration.coarse, restoration.focus_map_um))
        reblur = torch.cat([self._reblur(*one) for one in zip(image, restored, focus_map_um, strict=True)])
        spread = torch.zeros_like(reblur)
        if restoration.spread is not None:
            spread = smoothed(binned(restoration.spread, binning).square(), WINDOW_PX).clamp(min=0).sqrt()
        edges = unsupported_edges(image, restored, coarse, restoration.contrast)
        signs = unbinned(torch.cat([reblur, spread, edges], 1), binning, whole.shape[-2], whole.shape[-1], "bilinear")
        restored, share = restoration.restored, torch.zeros_like(signs[:, :1])
        if self.fallback:
            # A ramp of a quarter of the limit: a hard line between sharp and blurred pixels would be an edge too.
            share = ((self.doubt(signs)[:, None] / self.limit - 1) / 0.25).clamp(0, 1)
            restored = restored + share * ((restoration.coarse if self.fallback == "coarse" else whole) - restored)
        return Judgement(restored, torch.cat([signs, share], 1))

    def doubt(self, signs: Tensor) -> Tensor:
        """Expected error, (B, H, W) in grey levels of 255, of signs (B, 3, H, W).

        Where P-diffusion did not run there is no spread, and the weights are those of a single sample.
        """
        one, many = (torch.einsum("bchw,c->bhw", signs, torch.tensor(weights, device=signs.device))
                     for weights in (ONE_SAMPLE, MANY_SAMPLES))
        return 255 * torch.where(signs[:, SIGNS.index("spread")] > 0, many, one)

    def _reblur(self, image: Tensor, restored: Tensor, focus_map_um: Tensor) -> Tensor:
        """One tile: (3, H, W), (3, H, W), (1, H, W) µm -> (1, 1, H, W)."""
        light = to_linear(restored)
        flat = torch.ones_like(focus_map_um[0])
        reach = self.table.reach_um
        candidates = [focus_map_um[0].clamp(-reach, reach), *(step * flat for step in DISTANCES_UM)]
        least = torch.full_like(flat, torch.inf)
        for distance in candidates:
            residual = (to_srgb(defocus(light, distance, self.table)) - image).square().mean(0)
            least = torch.minimum(least, smoothed(residual[None, None], WINDOW_PX)[0, 0])
        return (least[None, None] - noise_deviation(image) ** 2).clamp(min=0).sqrt()


@functools.lru_cache(maxsize=4)
def _table(mpp: float) -> GainTable:
    """Gains of the standard objective nearest to the scale; it takes a second, and slides of a night share it."""
    optics = standard_optics(mpp)
    # Coarser than a simulation's table: the distance itself is known to half a µm at best.
    return GainTable(optics, reach_um=6.0, grid_px=128, layer_um=0.4)


def noise_deviation(image: Tensor) -> float:
    """Deviation of an image's noise, (3, H, W): the median of a mask that flat and sloping tissue leaves at 0.

    The mask is Immerkær's (1996), the median instead of his mean: edges are few, noise is everywhere.
    """
    mask = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]], device=image.device)
    if min(image.shape[-2:]) < 3:
        return 0.0
    answer = functional.conv2d(image[:, None], mask[None, None])
    # The mask multiplies white noise by 6; the median of |normal noise| is 0.6745 of its deviation.
    return float(answer.abs().median()) / 6 / 0.6745


def unsupported_edges(image: Tensor, restored: Tensor, coarse: Tensor, contrast: Tensor) -> Tensor:
    """Edges of the result without support, (B, 1, H, W); see the module. `contrast`: of the input, (B,)."""
    left = contrast.clamp(LEAST_CONTRAST, 1).view(-1, 1, 1, 1)
    support = torch.maximum(steepness(coarse), steepness(image) / left)
    support = functional.max_pool2d(support, 2 * TOLERANCE_PX + 1, 1, TOLERANCE_PX)
    return smoothed((steepness(restored) - support).clamp(min=0).square(), WINDOW_PX).clamp(min=0).sqrt()


def steepness(image: Tensor) -> Tensor:
    """|∇| of the grey image per pixel, (B, 3, H, W) -> (B, 1, H, W), after a Gaussian of 1 px."""
    grey = functional.pad(smoothed(image.mean(1, keepdim=True), 1.0), (1, 1, 1, 1), mode="replicate")
    across = (grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2]) / 2
    down = (grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1]) / 2
    return torch.hypot(across, down)


def cell_side_px(block_px: int) -> int:
    """Side of the map's cells: 64 px, or less where blocks of `block_px` are not made of such.

    Raises:
        ValueError: only cells below 16 px would fit.
    """
    side = math.gcd(block_px, 64)
    if side < 16:
        raise ValueError(f"a trust map needs tiles of a multiple of 64 px: --tile-px 256, got blocks of {block_px} px.")
    return side
