"""Tissue that no training field shows: other stains, and other contrast of fine against coarse detail.

A network that knows few stains reads distance from how their colours go together, and corrects too little where they do
not (decision 14). Both transforms change the sharp field, before the optics blur it.
    density     optical density -log(value), (3, H, W)
    gain        factor of a spatial frequency
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform, RandomizableTransform
from torch import Tensor

from bundle.conventions import LABEL, from_uint8, to_uint8

DARKEST = 1 / 255  # of [0, 1]: black has a density, too
KNOTS_PX = (128.0, 32.0, 8.0, 2.0)  # wavelengths between which a gain is drawn

Range = Sequence[float]


class RandStainMixd(RandomizableTransform, MapTransform):
    """Stains of drawn colours: each channel's density becomes a drawn mixture of all three; glass stays white.

    Args:
        keys: images (3, H, W), uint8.
        prob: share of the records that are changed.
        purity: of the Dirichlet distribution of a mixture; below 1 most weight falls on one channel, so that channels
            change places, above it they become alike: grey.
        strength: least and most factor that a channel's density is multiplied by.

    Raises:
        ValueError: `purity` or a strength is not positive, or `strength` is no range.
    """

    def __init__(self, keys: str = LABEL, prob: float = 0.5, purity: float = 0.6, strength: Range = (0.7, 1.4)) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        if purity <= 0:
            raise ValueError(f"purity must be above 0, got {purity}.")
        if len(strength) != 2 or not 0 < strength[0] <= strength[1]:
            raise ValueError(f"strength must be a range, 0 < least <= most, got {list(strength)}.")
        self.purity, self.strength = purity, strength

    def drawn_mixture(self) -> np.ndarray:
        """(3, 3), what each channel takes of each, from no change to a mixture that keeps nothing of its own."""
        foreign = self.R.dirichlet([self.purity] * 3, 3) * self.R.uniform(*self.strength, (3, 1))
        share = self.R.uniform()
        return (1 - share) * np.eye(3) + share * foreign

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Record with images in other stains, or untouched."""
        record = dict(data)
        self.randomize(None)
        if self._do_transform:
            mixture = torch.as_tensor(self.drawn_mixture(), dtype=torch.float32)
            for key in self.key_iterator(record):
                record[key] = mixed(torch.as_tensor(record[key]), mixture)
        return record


class RandDetailContrastd(RandomizableTransform, MapTransform):
    """Fine detail stronger or weaker beside coarse: a drawn gain for each spatial frequency, the same for all colours.

    Args:
        keys: images (3, H, W), uint8.
        prob: share of the records that are changed.
        log2_gains: range of the logarithm (base 2) of the gain at each wavelength of `KNOTS_PX`; linear in between.

    Raises:
        ValueError: not one range, least <= most, for each wavelength.
    """

    def __init__(self, keys: str = LABEL, prob: float = 0.5,
                 log2_gains: Sequence[Range] = ((-0.8, 0.5), (-0.4, 0.6), (-0.3, 0.7), (-0.5, 0.3))) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        if len(log2_gains) != len(KNOTS_PX) or any(len(each) != 2 or each[0] > each[1] for each in log2_gains):
            raise ValueError(f"log2_gains must be one range for each of {len(KNOTS_PX)} wavelengths, got {log2_gains}.")
        self.log2_gains = np.asarray(log2_gains, float)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Record with images of other contrast, or untouched."""
        record = dict(data)
        self.randomize(None)
        if self._do_transform:
            drawn = self.R.uniform(*self.log2_gains.T)
            for key in self.key_iterator(record):
                record[key] = with_gains(torch.as_tensor(record[key]), drawn)
        return record


def mixed(image: Tensor, mixture: Tensor) -> Tensor:
    """`image` (3, H, W), uint8, with densities mixed by `mixture` (3, 3); the same type comes out.

    Raises:
        TypeError: `image` is not uint8.
    """
    density = -from_uint8(image).clamp(min=DARKEST).log()
    return to_uint8(torch.einsum("oc,chw->ohw", mixture, density).neg().exp())


def with_gains(image: Tensor, log2_gains: np.ndarray) -> Tensor:
    """`image` (3, H, W), uint8, with the gain 2 ** `log2_gains` at each wavelength of `KNOTS_PX`; mean colours stay.

    Raises:
        TypeError: `image` is not uint8.
    """
    height, width = image.shape[-2:]
    mirrored = torch.cat([image, image.flip(-1)], -1)
    mirrored = from_uint8(torch.cat([mirrored, mirrored.flip(-2)], -2))
    frequency = np.hypot(np.fft.fftfreq(2 * height)[:, None], np.fft.rfftfreq(2 * width)[None])
    knots = np.log2(1 / np.array(KNOTS_PX))
    gain = 2 ** np.interp(np.log2(np.maximum(frequency, 1e-6)), knots, log2_gains)
    gain[0, 0] = 1
    spectrum = torch.fft.rfft2(mirrored) * torch.from_numpy(gain).float()
    return to_uint8(torch.fft.irfft2(spectrum, s=mirrored.shape[-2:])[:, :height, :width])
