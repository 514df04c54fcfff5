"""What a scanner's camera adds to the light: shot and read noise, sRGB, sharpening, JPEG."""

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
    recorded = to_srgb(light + deviation * channels * noise)
    if camera.sharpening > 0:
        recorded = (recorded + camera.sharpening * (recorded - smoothed(recorded, 1.0))).clamp(0, 1)
    eight_bit = to_uint8(recorded)
    if camera.jpeg_quality:
        eight_bit = _through_jpeg(eight_bit, camera)
    return from_uint8(eight_bit)


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
