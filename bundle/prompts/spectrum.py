"""Local spectra of a tile: what defocus writes into an image whatever the tissue is.

    window      Hann windows of 128 px, one every 64 px                                (side, side)
    P_c(f)      power of channel c at radial frequency f                               R, G, B
    C_cd(f)     coherence Re(F_c conj F_d) / sqrt(P_c P_d)                             RG, RB, GB
    spectrum    log P_c and C_cd of each window, then of the mean over all windows     (B, 12 K, h, w), h = ceil(H / 64)

Tissue looks much the same in its three colours, so their ratio at one frequency is mostly the ratio of two transfer
functions, and these have zeros and signs where the distance says. A convolutional network has to find that out; here it
is measured. Not in the paper: docs/decisions/0007-local-spectra.md has what it is worth.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

FAINTEST = 1e-7  # power below which a frequency is empty; an 8-bit step in one of a thousand pixels
SELVES, PAIRS = ((0, 0), (1, 1), (2, 2)), ((0, 1), (0, 2), (1, 2))


class LocalSpectrum(nn.Module):
    """Radial power and coherence of the colours around every position.

    Args:
        frequencies: K, rings of 1 to K cycles per window; at most half its side.
        window_px: side of the window, even. Far from focus the zeros of a transfer function lie close together: on
            the same patches a window of 64 px told the distance half as well as one of 128.
        stride_px: distance of two windows.
    """

    columns: Tensor  # (s, s + 2) a window's rows -> real and imaginary part at the frequencies of a real transform
    rows_real: Tensor  # (s, s) the same along the other side
    rows_imaginary: Tensor  # (s, s)
    average: Tensor  # (s (s/2 + 1), K) mean over each ring
    of_ones: Tensor  # (2, s, s/2 + 1) transform of the window itself, real and imaginary

    def __init__(self, frequencies: int = 64, window_px: int = 128, stride_px: int = 64) -> None:
        super().__init__()
        if window_px % 2 or window_px < stride_px or not 1 <= frequencies <= window_px // 2:
            raise ValueError(f"window_px must be even, at least {stride_px} and at least twice the frequencies "
                             f"{frequencies}, got {window_px}.")
        self.window_px, self.stride_px, self.width = window_px, stride_px, 12 * frequencies
        hann = torch.hann_window(window_px, periodic=True, dtype=torch.float64)
        rows = torch.fft.fft(torch.eye(window_px, dtype=torch.float64) * hann, norm="ortho")  # windowed along one side
        columns = rows[:, : window_px // 2 + 1]  # the other half of a real image's transform is its mirror
        radius = torch.hypot(torch.fft.fftfreq(window_px, dtype=torch.float64)[:, None],
                             torch.fft.rfftfreq(window_px, dtype=torch.float64)[None, :]).flatten()
        ring = (torch.floor(radius * window_px + 0.5)[:, None] == torch.arange(1, frequencies + 1)).double()
        of_ones = rows.sum(0)[:, None] * columns.sum(0)[None, :]  # the transform of the window itself
        # Not in the state dict: they follow from the arguments. Matrices, because not every format has a transform.
        for name, value in {"rows_real": rows.real.T, "rows_imaginary": rows.imag.T,
                            "columns": torch.cat([columns.real, columns.imag], 1),
                            "average": ring / ring.sum(0),
                            "of_ones": torch.stack([of_ones.real, of_ones.imag])}.items():
            self.register_buffer(name, value.float().contiguous(), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 12 K, h, w), h = ceil(H / stride_px)."""
        if torch.is_autocast_enabled(image.device.type):  # powers span five decades: no bfloat16 here
            with torch.autocast(image.device.type, enabled=False):
                return self.forward(image.float())
        products = self._products(image)  # (B, 6, K, rows, columns)
        tile = products.mean((-2, -1), keepdim=True).expand_as(products)
        return torch.cat([_readable(products), _readable(tile)], 1).flatten(1, 2)

    def _products(self, image: Tensor) -> Tensor:
        """Powers of the channels and real parts of the cross spectra, averaged over rings, (B, 6, K, rows, columns)."""
        side, margin = self.window_px, (self.window_px - self.stride_px) // 2
        padded = image
        for axis in (-2, -1):
            end = margin + -image.shape[axis] % self.stride_px
            pads = (0, 0, margin, end) if axis == -2 else (margin, end, 0, 0)
            # Mirrored, as every size that a graph is exported for can be; only a tile below 64 px repeats its border.
            padded = functional.pad(padded, pads, mode="reflect" if end < image.shape[axis] else "replicate")
        windows = padded.unfold(2, side, self.stride_px).unfold(3, side, self.stride_px)  # (B, 3, rows, columns, s, s)
        real, imaginary = (windows @ self.columns).chunk(2, -1)
        real, imaginary = (self.rows_real @ real - self.rows_imaginary @ imaginary,
                           self.rows_real @ imaginary + self.rows_imaginary @ real)  # (B, 3, rows, columns, s, s/2 + 1)
        mean = real[..., :1, :1] / self.of_ones[0, 0, 0]
        real = (real - mean * self.of_ones[0]).flatten(-2)
        imaginary = (imaginary - mean * self.of_ones[1]).flatten(-2)
        of_pairs = [real[:, c] * real[:, d] + imaginary[:, c] * imaginary[:, d] for c, d in (*SELVES, *PAIRS)]
        return (torch.stack(of_pairs, 1) @ self.average).movedim(-1, 2)


def _readable(products: Tensor) -> Tensor:
    """Log powers and coherences of powers and cross spectra, (B, 6, ...)."""
    powers = products[:, :3] + FAINTEST
    scale = torch.stack([powers[:, c] * powers[:, d] for c, d in PAIRS], 1).sqrt()
    return torch.cat([powers.log(), products[:, 3:] / scale], 1)
