"""Band gains, the P-former's last step: more or less of each band of detail, told by P_D and by local spectra.

    image     defocused tile I                                           (B, 3, H, W), [0, 1]
    coarse    what the P-former made of it, in I's colours, J            (B, 3, H, W), [0, 1]
    b_k(X)    detail of X between two Gaussians, k = 1..N                (B, 3, H, W)
    bands     b_k(J), what is there, and b_k(J - I), what was added      (B, 3, 2 N, H, W)
    seen      local spectra of J beside P_D, in cells of 64 px           (B, F, h + 1, w + 1)
    gains     one of each band and colour in each cell                   (B, 3, 2 N, h + 1, w + 1)
    result    J + Σ gains · bands, the gains linear between cells

A network that sees a few pixels around each place finds it hard to say how far from focus it is, and sharpens the wrong
band. The estimator measures this in windows of 128 px (P_D), and the spectra of the coarse image tell what is still
missing. The result is a filter of both images, so that detail grows and shrinks here but none is invented.
Not in the paper: docs/decisions/0008-band-gains.md has what it is worth.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.layers import gaussian_1d, separable_filtering
from torch import Tensor, nn
from torch.nn import functional

from bundle.prompts.spectrum import LocalSpectrum

CELL_PX = 64  # distance of two windows of the local spectra, and of two positions that have gains of their own
SIGMAS_PX = (0.5, 0.75, 1.1, 1.6, 2.3, 3.3, 4.7, 6.7)  # the Gaussians between which the bands lie
# Units of the gains in the reader's output: about equal errors of the image in every band.
OWN_SCALE, ADDED_SCALE = 3.0, 8.0


class GainReader(nn.Module):
    """Reads gains off spectra and P_D, cell by cell.

    Args:
        seen: F, channels of what is read.
        bands: 2 N.
        hidden: channels of the two layers between.
    """

    scale: Tensor  # (2 N, 1, 1)

    def __init__(self, seen: int, bands: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.BatchNorm2d(seen), nn.Conv2d(seen, hidden, 1), nn.GELU(), nn.Dropout(0.3),
                                    nn.Conv2d(hidden, hidden, 1), nn.GELU(), nn.Dropout(0.3))
        self.last = nn.Conv2d(hidden, 3 * bands, 1)
        for weight in self.last.parameters():
            nn.init.zeros_(weight)  # untrained, it leaves the coarse image as it is
        scale = torch.tensor([OWN_SCALE, ADDED_SCALE]).repeat_interleave(bands // 2)[:, None, None]
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, seen: Tensor) -> Tensor:
        """(B, F, h, w) -> gains (B, 3, 2 N, h, w)."""
        return self.last(self.layers(seen)).unflatten(1, (3, -1)) * self.scale


class BandGains(nn.Module):
    """The coarse image with more or less of each band, as the prompts ask.

    Args:
        defocus_width: C of P_D; a position of it spans half a cell.
        frequencies: rings of the local spectra.
        hidden: channels of the reader's layers.
        sigmas_px: the Gaussians, ascending.
    """

    def __init__(self, defocus_width: int, frequencies: int = 64, hidden: int = 256,
                 sigmas_px: Sequence[float] = SIGMAS_PX) -> None:
        super().__init__()
        if list(sigmas_px) != sorted(set(sigmas_px)) or not sigmas_px or sigmas_px[0] <= 0:
            raise ValueError(f"sigmas_px must be positive and ascend, got {tuple(sigmas_px)}.")
        self.spectrum = LocalSpectrum(frequencies, stride_px=CELL_PX)
        self.reader = GainReader(self.spectrum.width + 2 * defocus_width, 2 * len(sigmas_px), hidden)
        self.bands_each = len(sigmas_px)
        for at, sigma in enumerate(sigmas_px):
            kernel = gaussian_1d(torch.tensor(sigma), truncated=3.0, approx="sampled", normalize=True)
            self.register_buffer(f"gaussian_{at}", kernel, persistent=False)

    def forward(self, image: Tensor, coarse: Tensor, defocus: Tensor) -> Tensor:
        """Images (B, 3, H, W) and P_D (B, C, H / 32, W / 32) -> (B, 3, H, W), around [0, 1], not clipped."""
        gains = self.reader(self.seen(coarse, defocus))
        rows, columns = (_between_cells(size, gains) for size in image.shape[-2:])
        each_pixel = rows @ (gains @ columns.T)  # bilinear; a third of the time of `interpolate` on a CPU
        return coarse + (each_pixel * self.bands(image, coarse)).sum(2)

    def seen(self, coarse: Tensor, defocus: Tensor) -> Tensor:
        """What the gains are read from, (B, F, h + 1, w + 1); the last row and column repeat those before them."""
        spectra = self.spectrum(coarse)
        of_cells = functional.avg_pool2d(defocus, 2, ceil_mode=True)
        of_cells = functional.pad(of_cells, (0, 1, 0, 1), mode="replicate")
        of_tile = defocus.mean((2, 3), keepdim=True).expand_as(of_cells)
        return torch.cat([spectra, of_cells, of_tile], 1)

    def bands(self, image: Tensor, coarse: Tensor) -> Tensor:
        """Bands of the coarse image, then of what was added to `image`, finest first, (B, 3, 2 N, H, W)."""
        both = torch.cat([coarse, coarse - image], 1)
        kernels = [self.get_buffer(f"gaussian_{at}") for at in range(self.bands_each)]
        smooth = [both, *(separable_filtering(both, [kernel, kernel], mode="reflect") for kernel in kernels)]
        detail = torch.stack([finer - coarser for finer, coarser in zip(smooth[:-1], smooth[1:], strict=True)], 2)
        return torch.cat(detail.chunk(2, 1), 2)

    def products(self, image: Tensor, coarse: Tensor, label: Tensor) -> Tensor:
        """Mean products over each cell of all bands and of what is missing, `label` - `coarse`, of each colour.

        With `missing` beside the bands, (B, 3, 2 N + 1): all that the squared error of any gains depends on.

        Returns:
            (B, 3, 2 N + 1, 2 N + 1, H / 64, W / 64).

        Raises:
            ValueError: H or W is no multiple of 64.
        """
        if image.shape[-2] % CELL_PX or image.shape[-1] % CELL_PX:
            raise ValueError(f"height and width must be multiples of {CELL_PX}, got {tuple(image.shape[-2:])}.")
        all_bands = torch.cat([self.bands(image, coarse), (label - coarse)[:, :, None]], 2)
        cells = all_bands.unflatten(-1, (-1, CELL_PX)).unflatten(-3, (-1, CELL_PX))  # (B, 3, k, h, 64, w, 64)
        return torch.einsum("bckhpwq,bclhpwq->bcklhw", cells, cells) / CELL_PX**2


def _between_cells(size_px: int, like: Tensor) -> Tensor:
    """Weights of the cells along one side at each of its pixels, linear from middle to middle, (size_px, h + 1)."""
    cells = (size_px + CELL_PX - 1) // CELL_PX + 1
    at = (torch.arange(size_px, device=like.device, dtype=like.dtype) + 0.5) / CELL_PX - 0.5
    away = (at.clamp(min=0)[:, None] - torch.arange(cells, device=like.device, dtype=like.dtype)).abs()
    return (1 - away).clamp(min=0)
