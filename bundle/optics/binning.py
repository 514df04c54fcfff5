"""Binning: b x b pixels of a camera that samples more finely than its optics resolve, taken together.

    binned     mean of each b x b pixels            (B, C, ceil(H / b), ceil(W / b))
    unbinned   back on the pixels of the file       (B, C, H, W)
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def binned(image: Tensor, binning: int) -> Tensor:
    """(B, C, H, W) -> (B, C, ceil(H / b), ceil(W / b)); the last row and column average the pixels that there are."""
    return functional.avg_pool2d(image, binning, ceil_mode=True) if binning > 1 else image


def unbinned(image: Tensor, binning: int, height: int, width: int, mode: str = "bicubic") -> Tensor:
    """(B, C, ceil(H / b), ceil(W / b)) -> (B, C, H, W), interpolated; cubic values may leave the image's range."""
    if binning == 1:
        return image
    return functional.interpolate(image, scale_factor=binning, mode=mode, align_corners=False)[..., :height, :width]
