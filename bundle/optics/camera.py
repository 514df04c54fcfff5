"""What a scanner's camera adds to the light: shot and read noise, a Bayer mosaic, sRGB, sharpening, JPEG."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from bundle.conventions import from_uint8, to_uint8
from bundle.optics.focal_stack import to_linear, to_srgb

# Kernels that tell the colours a pixel of the mosaic (RGGB) lacks from those around it: green at red and blue; red at
# green in its own rows (blue at green in blue's), transposed in its columns; red at blue and blue at red.
MOSAICS = {
    "bilinear": (
        [[0, 0, 0, 0, 0], [0, 0, 1 / 4, 0, 0], [0, 1 / 4, 0, 1 / 4, 0], [0, 0, 1 / 4, 0, 0], [0, 0, 0, 0, 0]],
        [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1 / 2, 0, 1 / 2, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
        [[0, 0, 0, 0, 0], [0, 1 / 4, 0, 1 / 4, 0], [0, 0, 0, 0, 0], [0, 1 / 4, 0, 1 / 4, 0], [0, 0, 0, 0, 0]],
    ),
    # Malvar, He and Cutler 2004, figure 2
    "gradient": (
        [[0, 0, -1 / 8, 0, 0], [0, 0, 1 / 4, 0, 0], [-1 / 8, 1 / 4, 1 / 2, 1 / 4, -1 / 8], [0, 0, 1 / 4, 0, 0],
         [0, 0, -1 / 8, 0, 0]],
        [[0, 0, 1 / 16, 0, 0], [0, -1 / 8, 0, -1 / 8, 0], [-1 / 8, 1 / 2, 5 / 8, 1 / 2, -1 / 8],
         [0, -1 / 8, 0, -1 / 8, 0], [0, 0, 1 / 16, 0, 0]],
        [[0, 0, -3 / 16, 0, 0], [0, 1 / 4, 0, 1 / 4, 0], [-3 / 16, 0, 3 / 4, 0, -3 / 16], [0, 1 / 4, 0, 1 / 4, 0],
         [0, 0, -3 / 16, 0, 0]],
    ),
}  # fmt: skip


class Camera(NamedTuple):
    """A camera and the file it writes. Defaults: a good scanner."""

    full_well: float = 10_000.0  # photo-electrons at white: shot noise σ at white = 1 / sqrt(full_well)
    read_noise: float = 0.002  # share of white
    noise_px: float = 0.0  # σ of the smoothing that demosaicking leaves on the noise, px
    red_noise: float = 1.0  # red's noise against green's: white balance and colour matrix amplify it
    blue_noise: float = 1.0  # blue's
    sharpening: float = 0.0  # share of the detail (σ 1 px) added again
    jpeg_quality: int = 90  # 0: no JPEG
    chroma_subsampling: bool = True  # 4:2:0, as scanners write
    mosaic: str = ""  # how a Bayer camera fills in what its pixels lack, of `MOSAICS`; "": every pixel sees all colours


def record(image: Tensor, camera: Camera, generator: torch.Generator) -> Tensor:
    """The file that `camera` writes of one image: (3, H, W) sRGB [0, 1] -> (3, H, W) sRGB [0, 1], 8-bit values.

    Args:
        image: free of noise.
        camera: what is added.
        generator: on the CPU; the same state gives the same noise on any device.
    """
    light = to_linear(image)
    noise = torch.randn(light.shape, generator=generator).to(light.device)
    if camera.noise_px > 0:
        smooth = smoothed(noise, camera.noise_px)
        noise = smooth * (noise.std() / smooth.std().clamp(min=1e-6))
    deviation = (light.clamp(min=0) / camera.full_well + camera.read_noise**2).sqrt()
    channels = torch.tensor([camera.red_noise, 1.0, camera.blue_noise], device=light.device)[:, None, None]
    seen = light + deviation * channels * noise
    recorded = to_srgb(demosaicked(seen, camera.mosaic) if camera.mosaic else seen)
    if camera.sharpening > 0:
        recorded = (recorded + camera.sharpening * (recorded - smoothed(recorded, 1.0))).clamp(0, 1)
    eight_bit = to_uint8(recorded)
    if camera.jpeg_quality:
        eight_bit = _through_jpeg(eight_bit, camera)
    return from_uint8(eight_bit)


def demosaicked(light: Tensor, mosaic: str) -> Tensor:
    """Light (3, H, W) through a Bayer mosaic, the missing colours filled in by the kernels of `mosaic`, (3, H, W)."""
    height, width = light.shape[-2:]
    red_rows = (torch.arange(height, device=light.device) % 2 == 0)[:, None].expand(height, width)
    red_columns = (torch.arange(width, device=light.device) % 2 == 0)[None].expand(height, width)
    raw = torch.where(red_rows & red_columns, light[0], torch.where(red_rows ^ red_columns, light[1], light[2]))
    cross, along, diagonal = (torch.tensor(kernel, device=light.device) for kernel in MOSAICS[mosaic])
    kernels = torch.stack([cross, along, along.T, diagonal])[:, None]
    # Mirrored without the border itself, every pixel keeps the colour that it sees; a single row has no mirror.
    reach = [min(2, size - 1) for size in (width, width, height, height)]
    padded = functional.pad(raw[None, None], reach, mode="reflect")
    padded = functional.pad(padded, [2 - side for side in reach], mode="replicate")
    filled, rowwise, columnwise, diagonally = functional.conv2d(padded, kernels)[0]
    green = torch.where(red_rows ^ red_columns, raw, filled)
    red = torch.where(red_rows, torch.where(red_columns, raw, rowwise),
                      torch.where(red_columns, columnwise, diagonally))  # fmt: skip
    blue = torch.where(red_rows, torch.where(red_columns, diagonally, columnwise),
                       torch.where(red_columns, rowwise, raw))  # fmt: skip
    return torch.stack([red, green, blue])


def smoothed(image: Tensor, sigma_px: float) -> Tensor:
    """Gaussian blur of (..., C, H, W) with reflected borders."""
    reach = max(1, round(3 * sigma_px))
    offsets = torch.arange(-reach, reach + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma_px).square())
    kernel = kernel / kernel.sum()
    flat = image.reshape(-1, 1, *image.shape[-2:])
    rows, columns = (min(reach, size - 1) for size in image.shape[-2:])
    flat = functional.pad(flat, (columns, columns, rows, rows), mode="reflect")
    flat = functional.pad(flat, (reach - columns, reach - columns, reach - rows, reach - rows), mode="replicate")
    flat = functional.conv2d(functional.conv2d(flat, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    return flat.reshape(image.shape)


def _through_jpeg(image: Tensor, camera: Camera) -> Tensor:
    file = io.BytesIO()
    pixels = image.permute(1, 2, 0).cpu().numpy()
    subsampling = 2 if camera.chroma_subsampling else 0
    Image.fromarray(pixels).save(file, "JPEG", quality=camera.jpeg_quality, subsampling=subsampling)
    decoded = np.asarray(Image.open(file)).copy()
    return torch.from_numpy(decoded).permute(2, 0, 1).to(image.device)
