"""Local spectra of a tile: what defocus writes into an image whatever the tissue is.

    window      Hann windows of 128 px, one every 64 px                                (side, side)
    P_c(f)      power of channel c at radial frequency f                               R, G, B
    C_cd(f)     coherence Re(F_c conj F_d) / sqrt(P_c P_d)                             RG, RB, GB
    spectrum    log P_c and C_cd of each window, then of the mean over all windows     (B, 12 K, h + 1, w + 1)

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

    columns: Tensor  # (s + 2, 1, 1, s) kernels of a real transform along rows of pixels: real, imaginary, real, …
    rows: Tensor  # (2 s, 2, s, 1) kernels of a transform along columns of (real, imaginary): all real parts first
    average: Tensor  # ((s/2 + 1) s, K) mean over each ring
    of_ones: Tensor  # (s/2 + 1, 2, s) transform of the window itself

    def __init__(self, frequencies: int = 64, window_px: int = 128, stride_px: int = 64) -> None:
        super().__init__()
        if window_px % 2 or window_px < stride_px or not 1 <= frequencies <= window_px // 2:
            raise ValueError(f"window_px must be even, at least {stride_px} and at least twice the frequencies "
                             f"{frequencies}, got {window_px}.")
        self.window_px, self.stride_px, self.width = window_px, stride_px, 12 * frequencies
        hann = torch.hann_window(window_px, periodic=True, dtype=torch.float64)
        along = torch.fft.fft(torch.eye(window_px, dtype=torch.float64) * hann, norm="ortho")  # (place, frequency)
        half = along[:, : window_px // 2 + 1]  # the other half of a real image's transform is its mirror
        columns = torch.stack([half.real, half.imag], -1)  # (place, frequency, 2)
        real, imaginary = along.real.T, along.imag.T
        rows = torch.stack([torch.stack([real, -imaginary], 1), torch.stack([imaginary, real], 1)])  # (2, f, 2, place)
        radius = torch.hypot(torch.fft.rfftfreq(window_px, dtype=torch.float64)[:, None],
                             torch.fft.fftfreq(window_px, dtype=torch.float64)[None, :]).flatten()
        ring = (torch.floor(radius * window_px + 0.5)[:, None] == torch.arange(1, frequencies + 1)).double()
        of_ones = half.sum(0)[:, None] * along.sum(0)[None, :]  # the transform of the window itself
        # Not in the state dict: they follow from the arguments. Convolutions, because not every format has a transform.
        for name, value in {"columns": columns.flatten(1).T[:, None, None, :], "rows": rows.flatten(0, 1)[..., None],
                            "average": ring / ring.sum(0),
                            "of_ones": torch.stack([of_ones.real, of_ones.imag], 1)}.items():
            self.register_buffer(name, value.float().contiguous(), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 12 K, h + 1, w + 1), h = ceil(H / stride_px).

        The last row and column repeat the ones before them: exported graphs want no axis of length 1, and whoever
        interpolates between windows wants one beyond the last.
        """
        if torch.is_autocast_enabled(image.device.type):  # powers span five decades: no bfloat16 here
            with torch.autocast(image.device.type, enabled=False):
                return self.forward(image.float())
        products = self._products(image)  # (B, 6, K, h + 1, w + 1)
        rows, columns = ((torch.arange(count, device=image.device) < count - 1).to(image.dtype) / (count - 1)
                         for count in products.shape[-2:])
        tile = (products * rows[:, None] * columns).sum((-2, -1), keepdim=True).expand_as(products)
        return torch.cat([_readable(products), _readable(tile)], 1).flatten(1, 2)

    def _products(self, image: Tensor) -> Tensor:
        """Powers of the channels and real parts of the cross spectra, averaged over rings, (B, 6, K, h + 1, w + 1)."""
        windows, side = image, self.window_px
        for axis in (-2, -1):
            windows = windows.index_select(axis, self._places(image.shape[axis], image.device))
        # The transform of every window, one side after the other; (real, imaginary) beside each other.
        along = functional.conv2d(windows.flatten(0, 1)[:, None], self.columns, stride=(1, side))
        along = along.unflatten(1, (-1, 2)).flatten(0, 1)  # (3 B (s/2 + 1), 2, s (h + 1), w + 1)
        both = functional.conv2d(along, self.rows, stride=(side, 1))  # (3 B (s/2 + 1), 2 s, h + 1, w + 1)
        both = both.unflatten(1, (2, -1)).unflatten(0, (image.shape[0], 3, -1))  # (B, 3, s/2 + 1, 2, s, h + 1, w + 1)
        mean = both[:, :, :1, :1, :1] / self.of_ones[0, 0, 0]
        real, imaginary = (both - mean * self.of_ones[..., None, None]).movedim(3, 0).flatten(3, 4)
        of_pairs = [real[:, c] * real[:, d] + imaginary[:, c] * imaginary[:, d] for c, d in (*SELVES, *PAIRS)]
        return torch.einsum("bpfrc,fk->bpkrc", torch.stack(of_pairs, 1), self.average)

    def _places(self, length: int, device: torch.device) -> Tensor:
        """Which pixels along a side the windows hold, one window after the other; mirrored at both ends."""
        last = (length + self.stride_px - 1) // self.stride_px - 1
        first = torch.arange(last + 2, device=device).clamp(max=last)
        inside = torch.arange(self.window_px, device=device) - (self.window_px - self.stride_px) // 2
        place = (first[:, None] * self.stride_px + inside).flatten().abs()
        # A tile below 64 px has no mirror wide enough: its border is repeated there.
        return torch.minimum(place, 2 * (length - 1) - place).clamp(min=0)


def _readable(products: Tensor) -> Tensor:
    """Log powers and coherences of powers and cross spectra, (B, 6, ...)."""
    powers = products[:, :3] + FAINTEST
    scale = torch.stack([powers[:, c] * powers[:, d] for c, d in PAIRS], 1).sqrt()
    return torch.cat([powers.log(), products[:, 3:] / scale], 1)
