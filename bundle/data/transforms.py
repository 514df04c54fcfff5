"""The transforms that MONAI lacks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.transforms import MapTransform, RandomizableTransform
from torch.nn import functional

from bundle.conventions import LABEL, MPP


class RandCropAtMagnificationd(RandomizableTransform, MapTransform):
    """A random crop, of 40x fields at times as 20x shows them: twice as wide, 2x2 pixels averaged, mpp doubled.

    Other crops are at times shrunk or enlarged while their mpp is kept: tissue finer or softer than the training
    fields', so that neither fine detail in itself should mean focus nor its lack defocus.

    Args:
        keys: images (3, H, W), uint8.
        size_px: side of the crop that comes out.
        halve_share: share of the crops of fields finer than `finest_mpp` that are shown at half their resolution.
        finest_mpp: µm per pixel from which on a field counts as 20x.
        shrink_share: share of the other crops that are shrunk, 1 to 2 times.
        enlarge_share: share of the other crops that are enlarged, 1 to 2 times.

    Raises:
        ValueError: `shrink_share` and `enlarge_share` are together more than 1.
    """

    def __init__(self, keys: str = LABEL, size_px: int = 320, halve_share: float = 0.25, finest_mpp: float = 0.36,
                 shrink_share: float = 0.0, enlarge_share: float = 0.0) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, halve_share)
        if shrink_share + enlarge_share > 1:
            raise ValueError(f"shrink_share and enlarge_share must be at most 1 together, got {shrink_share} and "
                             f"{enlarge_share}.")
        self.size_px, self.finest_mpp = size_px, finest_mpp
        self.shrink_share, self.enlarge_share = shrink_share, enlarge_share

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Record with crops (3, size_px, size_px), uint8, and its mpp.

        Raises:
            ValueError: a field is smaller than the crop.
        """
        record = dict(data)
        self.randomize(None)
        times_wider = self._times_wider()
        for key in self.key_iterator(record):
            image = torch.as_tensor(record[key])
            shortest = min(image.shape[-2:])
            if shortest < self.size_px:
                raise ValueError(f"fields must be at least {self.size_px} px a side to be cropped, got {shortest} px.")
            halve = self._do_transform and record[MPP] < self.finest_mpp and shortest >= 2 * self.size_px
            side = 2 * self.size_px if halve else min(shortest, round(self.size_px * times_wider))
            row, column = (self.R.randint(length - side + 1) for length in image.shape[-2:])
            crop = image[:, row:row + side, column:column + side]
            if halve:
                crop = functional.avg_pool2d(crop[None].float(), 2)[0].round().to(torch.uint8)
                record[MPP] = record[MPP] * 2
            elif side != self.size_px:
                size, mode = (self.size_px, self.size_px), "bilinear" if side > self.size_px else "bicubic"
                crop = functional.interpolate(crop[None].float(), size, mode=mode, antialias=True)[0]
                crop = crop.round().clamp(0, 255).to(torch.uint8)
            record[key] = crop
        return record

    def _times_wider(self) -> float:
        """Side of a crop over that of what comes out, where it is not halved."""
        kind = self.R.rand()
        if kind < self.shrink_share:
            return float(self.R.uniform(1, 2))
        if kind < self.shrink_share + self.enlarge_share:
            return 1 / float(self.R.uniform(1, 2))
        return 1.0
