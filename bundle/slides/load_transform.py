"""The project's reader as a MONAI transform, for configs: what `open_image` refuses is refused there too."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from bundle.slides.reader import open_image


class LoadImageRGBd(MapTransform):
    """Path -> (3, H, W) uint8. MONAI's readers turn 16 bits into white, drop alpha and take a plane of their choice.

    MONAI Deploy knows by `LoadImage` in the name what to leave out where pixels are in memory already.

    Args:
        keys: of the paths, which the pixels replace.
        allow_missing_keys: see `MapTransform`.

    Raises:
        FileNotFoundError, ImageError: see `open_image`.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The same record with pixels."""
        loaded = dict(data)
        for key in self.key_iterator(loaded):
            with open_image(loaded[key]) as image:
                pixels = torch.from_numpy(image.read(0, 0, *image.shape))
            loaded[key] = pixels.permute(2, 0, 1).contiguous()
        return loaded
