"""RandStainNA: stain augmentation that draws the colour statistics a patch is moved to.

A patch's mean and deviation in each LAB channel are replaced by drawn ones (Reinhard's transfer), the drawn ones
spread as the training fields' own. Per channel it is one scale and one shift: detail stays where it is.
Source: Shen et al. 2022 (RandStainNA); Reinhard et al. 2001.
"""

from __future__ import annotations

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
MEANS = ((71.1, 10.1), (19.4, 13.6), (-21.1, 13.0))
DEVIATIONS = ((13.3, 3.8), (9.0, 6.3), (10.0, 6.3))


class RandStainNAd(RandomizableTransform, MapTransform):
    """RandStainNA on uint8 images (3, H, W).

    Args:
        keys: images.
        prob: share of the images that are changed.
        means, deviations: (mean, deviation) of each LAB channel's mean and deviation over a data set.
        strength: scales how widely statistics are drawn.
        most_stretch: a channel is stretched or squeezed at most by this factor, so that detail stays visible.
    """

    def __init__(self, keys: str = LABEL, prob: float = 0.5, means: Sequence[Sequence[float]] = MEANS,
                 deviations: Sequence[Sequence[float]] = DEVIATIONS, strength: float = 1.0,
                 most_stretch: float = 1.5) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.means, self.deviations = np.asarray(means, float), np.asarray(deviations, float)
        self.strength, self.most_stretch = strength, most_stretch

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Record with images in drawn colours."""
        record = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return record
        mean, deviation = (self.R.normal(table[:, 0], self.strength * table[:, 1])
                           for table in (self.means, self.deviations))
        for key in self.key_iterator(record):
            record[key] = recoloured(torch.as_tensor(record[key]), mean, deviation, self.most_stretch)
        return record


def recoloured(image: Tensor, mean: np.ndarray, deviation: np.ndarray, most_stretch: float = 1.5) -> Tensor:
    """uint8 (3, H, W) with the LAB statistics `mean` and `deviation`, (3,) each; blank patches only change colour."""
    lab = rgb2lab(image.permute(1, 2, 0).numpy())
    own_mean, own_deviation = lab.mean((0, 1)), lab.std((0, 1))
    stretch = np.clip(deviation / np.maximum(own_deviation, 1e-3), 1 / most_stretch, most_stretch)
    rgb = lab2rgb((lab - own_mean) * stretch + mean)
    return torch.from_numpy(np.clip(np.round(rgb * 255), 0, 255).astype(np.uint8)).permute(2, 0, 1)
