"""RandStainNA: stain augmentation that draws the colour statistics a patch is moved to.

A patch's mean and deviation in each LAB channel are replaced by drawn ones (Reinhard's transfer), the drawn ones
spread as the training fields' own. Per channel it is one scale and one shift: detail stays where it is.
Source: Shen et al. 2022 (RandStainNA); Reinhard et al. 2001.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform, RandomizableTransform
from skimage.color import lab2rgb, rgb2lab
from torch import Tensor

from bundle.conventions import LABEL

# (mean, deviation) over the training patches of each LAB channel's mean and of its deviation:
# python scripts/measure_stain.py ../shared/data/tiles
MEANS = ((70.3, 9.3), (19.3, 13.3), (-21.9, 13.5))
DEVIATIONS = ((13.6, 3.4), (8.7, 6.2), (9.9, 6.2))

Table = Sequence[Sequence[float]]


class RandStainNA(RandomizableTransform):
    """RandStainNA on one image (3, H, W): float [0, 1] or uint8, and the same comes out.

    Args:
        prob: share of the images that are changed.
        means, deviations: (mean, deviation) of each LAB channel's mean and deviation over a data set.
        strength: scales how widely statistics are drawn; 0 moves every image to the data set's mean colours.
        most_stretch: a channel is stretched or squeezed at most by this factor, so that detail stays visible.

    Raises:
        ValueError: a table is not (3, 2), a spread or `strength` is negative, or `most_stretch` is below 1.
    """

    def __init__(self, prob: float = 0.5, means: Table = MEANS, deviations: Table = DEVIATIONS,
                 strength: float = 1.0, most_stretch: float = 1.5) -> None:
        RandomizableTransform.__init__(self, prob)
        self.means, self.deviations = np.asarray(means, float), np.asarray(deviations, float)
        for table in (self.means, self.deviations):
            if table.shape != (3, 2) or (table[:, 1] < 0).any():
                raise ValueError("means and deviations must be (mean, deviation >= 0) of three channels, "
                                 f"got {table.tolist()}.")
        if strength < 0 or most_stretch < 1:
            raise ValueError("strength must be 0 or more and most_stretch 1 or more, "
                             f"got {strength} and {most_stretch}.")
        self.strength, self.most_stretch = strength, most_stretch

    def drawn_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of each LAB channel to move an image to, (3,) each."""
        mean, deviation = (self.R.normal(table[:, 0], self.strength * table[:, 1])
                           for table in (self.means, self.deviations))
        return mean, deviation

    def __call__(self, image: Tensor) -> Tensor:
        """The image in drawn colours, or untouched."""
        self.randomize(None)
        if not self._do_transform:
            return image
        return recoloured(torch.as_tensor(image), *self.drawn_statistics(), self.most_stretch)


class RandStainNAd(RandStainNA, MapTransform):
    """RandStainNA on records: one draw of statistics for all of a record's `keys`. Arguments as `RandStainNA`."""

    def __init__(self, keys: str | Sequence[str] = LABEL, prob: float = 0.5, means: Table = MEANS,
                 deviations: Table = DEVIATIONS, strength: float = 1.0, most_stretch: float = 1.5) -> None:
        MapTransform.__init__(self, keys)
        RandStainNA.__init__(self, prob, means, deviations, strength, most_stretch)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:  # type: ignore[override]
        """Record with images in drawn colours."""
        record = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return record
        statistics = self.drawn_statistics()
        for key in self.key_iterator(record):
            record[key] = recoloured(torch.as_tensor(record[key]), *statistics, self.most_stretch)
        return record


def recoloured(image: Tensor, mean: np.ndarray, deviation: np.ndarray, most_stretch: float = 1.5) -> Tensor:
    """(3, H, W) with the LAB statistics `mean` and `deviation`, (3,) each; blank patches only change colour.

    Args:
        image: uint8 or float [0, 1]; the same type comes out, clipped to its range.
        mean, deviation: of L (0 to 100), a and b.
        most_stretch: largest change of a channel's deviation, as a factor.

    Raises:
        ValueError: the image is not (3, H, W).
    """
    if image.ndim != 3 or image.shape[0] != 3 or min(image.shape) < 1:
        raise ValueError(f"an image to recolour must have shape (3, H, W), got {tuple(image.shape)}.")
    lab = rgb2lab(image.permute(1, 2, 0).cpu().numpy())
    own_mean, own_deviation = lab.mean((0, 1)), lab.std((0, 1))
    stretch = np.clip(deviation / np.maximum(own_deviation, 1e-3), 1 / most_stretch, most_stretch)
    with warnings.catch_warnings():  # one line for every patch with a colour outside sRGB: it is clipped below
        warnings.filterwarnings("ignore", "Conversion from CIE-LAB", UserWarning)
        rgb = np.clip(lab2rgb((lab - own_mean) * stretch + mean), 0, 1)
    if image.dtype == torch.uint8:
        rgb = np.round(rgb * 255)
    return torch.from_numpy(rgb).permute(2, 0, 1).contiguous().to(image)
