"""How finely a camera samples: pixels along a side of a file that share what one pixel of a trained image holds.

    seen          local spectra of a tile, its windows averaged                  (B, 6 K)
    reading       log2 of the oversampling, 0 where the pixels fit the optics,   (B,)
                  or less where it is in doubt
    fine detail   coherence of green with red and blue beyond what pixels of     (B,)
                  twice the size hold: tissue has it, a sensor's noise has none
    binning       of a whole image, 1 or 2: what `TileRestorer` restores it in. Its own fine detail forbids it; the
                  oversampling is read from all images of its camera that are at hand

Blur, too, takes away fine detail; but it leaves the zeros and the signs of its transfer function, and differs between
the colours. Not in the paper: docs/decisions/0010-binning.md and 0016-one-camera.md have what it is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bundle.prompts.spectrum import PAIRS, SELVES, LocalSpectrum

NO_DETAIL = 0.1  # coherence below which there is none; that of noise is 0.05 at most in tiles of 256 px
# Pairs of colours: red and blue without green may share a mosaic's noise.
WITH_GREEN = [len(SELVES) + at for at, pair in enumerate(PAIRS) if 1 in pair]


class SamplingReader(nn.Module):
    """Reads the oversampling off spectra.

    Args:
        frequencies: K, rings of the local spectra, more than a quarter of a window's pixels; 36 of the 64 keep out the
            finest pattern, which is a camera's own.
        hidden: channels of the two layers between.
    """

    def __init__(self, frequencies: int = 36, hidden: int = 256) -> None:
        super().__init__()
        self.spectrum = LocalSpectrum(frequencies)
        self.coarse = self.spectrum.window_px // 4  # rings that pixels of twice the size hold
        if frequencies <= self.coarse:
            raise ValueError(f"frequencies must be more than {self.coarse}, got {frequencies}.")
        seen = self.spectrum.width // 2
        self.reader = nn.Sequential(nn.BatchNorm1d(seen), nn.Linear(seen, hidden), nn.GELU(), nn.Dropout(0.3),
                                    nn.Linear(hidden, hidden), nn.GELU(), nn.Dropout(0.3),
                                    nn.Linear(hidden, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Tiles (B, 3, H, W) in [0, 1] -> log2 of their oversampling (B,) and their fine detail (B,)."""
        seen = self.seen(image)
        coherence = seen.unflatten(1, (len(SELVES) + len(PAIRS), -1))[:, WITH_GREEN, self.coarse:]
        return self.reader(seen)[:, 0], coherence.mean((1, 2))

    def seen(self, image: Tensor) -> Tensor:
        """What is read: spectra of tiles (B, 3, H, W), the mean over their windows, (B, 6 K)."""
        return self.spectrum(image)[:, self.spectrum.width // 2:, 0, 0]


def binning_of(reader: SamplingReader, tiles: Iterable[Tensor], threshold: float,
               camera: Callable[[], float] | None = None) -> int:
    """2 where an image's camera oversamples and none of its own tiles has fine detail to lose, else 1.

    Args:
        reader: of one tile.
        tiles: some of the image's, each (3, h, w) in [0, 1].
        threshold: of the oversampling's log2.
        camera: `log2_oversampling_of` tiles of all images of its camera, asked only where it counts; None: of this one.
    """
    seen = []
    for one in _each(reader, tiles):
        if one.detail > NO_DETAIL:
            return 1
        seen.append(one)
    return 2 if (_mean(seen) if camera is None else camera()) > threshold else 1


def log2_oversampling_of(reader: SamplingReader, tiles: Iterable[Tensor]) -> float:
    """log2 of the oversampling, mean over tiles (3, h, w) in [0, 1]; a tile counts as much as it has contrast."""
    return _mean(_each(reader, tiles))


class _Seen(NamedTuple):
    reading: float
    detail: float
    contrast: float


def _each(reader: SamplingReader, tiles: Iterable[Tensor]) -> Iterator[_Seen]:
    for tile in tiles:
        with torch.inference_mode():
            reading, detail = (float(value) for value in reader(tile[None]))
        yield _Seen(reading, detail, float(tile.var((-2, -1)).mean()))


def _mean(seen: Iterable[_Seen]) -> float:
    readings, weights = 0.0, 0.0
    for one in seen:
        readings += one.contrast * one.reading
        weights += one.contrast
    return readings / weights if weights else 0.0
