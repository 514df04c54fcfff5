"""Draw a scanner, a relief and a plane at random, and defocus sharp patches with them: what training sees.

Every patch has its own seed, so a patch looks the same whatever batch it is drawn in. Tables of gains are the dear
part: `scanners` of them are drawn once, each an objective with its own aperture, sampling, condenser and errors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from bundle.optics.camera import MOSAICS, Camera, record
from bundle.optics.contrast import contrast_value
from bundle.optics.focal_stack import GainTable, defocus, random_relief_um, to_linear, to_srgb
from bundle.optics.pupil import COARSE_MPP, OPTICS_20X, OPTICS_40X, Optics

Range = Sequence[float]  # (lowest, highest)
CUBIC_DEVIATION = 0.857  # standard deviation of unit white noise after bicubic interpolation
DARKEST = 1e-3  # linear light that still comes through a layer


class SimulatedPatches(NamedTuple):
    """A batch of defocused patches with their truth."""

    image: Tensor  # (B, 3, H, W) sRGB [0, 1]
    label: Tensor  # (B, 3, H, W) sRGB [0, 1]
    defocus_um: Tensor  # (B,) signed
    contrast: Tensor  # (B,) [0, 1], NaN where the patch is empty
    oversampling: Tensor  # (B,) camera pixels along a side of a pixel of the field, from 1


class DefocusSimulator:
    """Defocuses batches of sharp patches.

    Args:
        margin_px: border of the sharp patches that blurring may look at and that is cut off.
        scanners: objectives drawn for each magnification.
        standard_share: share of the patches that are seen by the standard objective, `OPTICS_40X` or `OPTICS_20X`,
            and a thin specimen instead of drawn ones.
        seed: of the objectives.
        reach_um: planes lie within ± this of the stage's zero.
        relief_um: amplitude of the tissue's relief within a patch.
        focus_bias: above 1 draws planes near focus more often: |position| = reach * uniform ** focus_bias.
        na_40x, na_20x, mpp_40x, mpp_20x: apertures and samplings.
        condenser, spherical_waves, phase_ratio: see `Optics`.
        chromatic_share: the focal shift of each channel as a share of the one in `Optics`.
        full_well, noise_px, sharpening, jpeg_quality: see `Camera`; full_well is drawn on a logarithmic scale.
        red_blue_noise: of red and of blue, each drawn; see `Camera`.
        good_camera_share: share of the patches behind a standard objective that a good scanner's camera records, the
            defaults of `Camera`, instead of a drawn one. 0 draws nothing.
        bayer_share: share of the drawn objectives behind which a Bayer camera stands, with either of `MOSAICS`; its
            noise is smoothed by nothing else. 0 draws nothing.
        thickness_um: depth over which a drawn objective's blur is averaged: of thick specimens.
        oversampling: camera pixels a pixel of the field, behind a drawn objective; below 1 counts as 1. Many cameras
            have finer pixels than their optics resolve.
        second_layer: share of the absorption that lies in another layer of the specimen, at a distance of its own,
            mostly near focus, behind a drawn objective; below 0 counts as 0. Cells lie upon each other in smears and
            thick sections.
        one_focus: share of the specimens of two layers whose truth is one plane of them: the second layer as sharp as
            it looks from the first one's focus or from the image's plane, whichever is sharper. Elsewhere the truth is
            sharp in both. 0 draws nothing.
        parallax: standard deviation of the shift of truth against image, behind a drawn objective, pixels of the field
            a µm from focus; below 0 counts as 0, (0, 0) draws nothing. Light through thick tissue is not parallel, and
            a stage drifts between two planes.
        layer_um: defocus between two layers of the blur.
    """

    def __init__(self, margin_px: int = 32, scanners: int = 16, seed: int = 0, reach_um: float = 4.8,
                 relief_um: Range = (0.0, 1.0), focus_bias: float = 1.0, na_40x: Range = (0.75, 0.75),
                 na_20x: Range = (0.4, 0.4), mpp_40x: Range = (0.25, 0.25), mpp_20x: Range = (0.5, 0.5),
                 condenser: Range = (1.0, 1.0), spherical_waves: Range = (-0.1, -0.1), phase_ratio: Range = (0.0, 0.0),
                 chromatic_share: Range = (1.0, 1.0), full_well: Range = (3_000.0, 30_000.0),
                 noise_px: Range = (0.0, 0.0), red_blue_noise: Range = (1.0, 1.0), sharpening: Range = (0.0, 0.0),
                 jpeg_quality: Range = (70, 95), standard_share: float = 0.0, thickness_um: Range = (0.0, 0.0),
                 oversampling: Range = (1.0, 1.0), second_layer: Range = (0.0, 0.0), one_focus: float = 0.0,
                 parallax: Range = (0.0, 0.0), good_camera_share: float = 0.0, bayer_share: float = 0.0,
                 layer_um: float = 0.4) -> None:
        self.margin_px, self.reach_um, self.relief_um, self.focus_bias = margin_px, reach_um, relief_um, focus_bias
        self.full_well, self.noise_px, self.sharpening = full_well, noise_px, sharpening
        self.red_blue_noise, self.second_layer = red_blue_noise, second_layer
        self.one_focus, self.parallax = one_focus, parallax
        self.good_camera_share, self.bayer_share = good_camera_share, bayer_share
        self.jpeg_quality, self.standard_share, self.oversampling = jpeg_quality, standard_share, oversampling
        generator = torch.Generator().manual_seed(seed)
        reach = reach_um + relief_um[1] + layer_um
        self.tables: list[list[GainTable]] = []  # of each magnification: the standard objective, then the drawn ones
        for standard, na, mpp in ((OPTICS_40X, na_40x, mpp_40x), (OPTICS_20X, na_20x, mpp_20x)):
            tables = [GainTable(standard, reach, grid_px=128, layer_um=layer_um)]
            for _ in range(scanners):
                share = _draw(chromatic_share, generator)
                optics = Optics(na=_draw(na, generator), mpp=_draw(mpp, generator),
                                condenser=_draw(condenser, generator),
                                spherical_waves=_draw(spherical_waves, generator),
                                chromatic_um=tuple(share * shift for shift in OPTICS_40X.chromatic_um),
                                phase_ratio=_draw(phase_ratio, generator))
                tables.append(GainTable(optics, reach, grid_px=128, layer_um=layer_um,
                                        thickness_um=_draw(thickness_um, generator)))
            self.tables.append(tables)

    def __call__(self, sharp: Tensor, mpp: Tensor, seeds: Tensor) -> SimulatedPatches:
        """Defocus sharp patches (B, 3, H + 2 margin, W + 2 margin) in [0, 1], mpp (B,), seeds (B,) int64."""
        drawn = [self._defocused(*patch) for patch in zip(sharp, mpp.tolist(), seeds.tolist(), strict=True)]
        image, clean, label, position, pixel_um, scale = (torch.stack(values) for values in zip(*drawn, strict=True))
        return SimulatedPatches(image, label, position, contrast_value(clean, label, pixel_um), scale)

    def centre(self, sharp: Tensor) -> Tensor:
        """What is left of patches (..., H, W) without their margin."""
        margin = self.margin_px
        return sharp[..., margin:sharp.shape[-2] - margin, margin:sharp.shape[-1] - margin]

    def _defocused(self, sharp: Tensor, mpp: float, seed: int) -> tuple[Tensor, ...]:
        """One patch: as recorded, before the camera, sharp; its median signed distance, µm per pixel, oversampling."""
        generator = torch.Generator().manual_seed(seed)
        tables = self.tables[int(mpp >= COARSE_MPP)]
        chosen = 1 + int(torch.randint(len(tables) - 1, (), generator=generator))
        standard = _draw((0, 1), generator) < self.standard_share
        table = tables[0 if standard else chosen]
        scale = max(1.0, math.exp(_draw([math.log(end) for end in self.oversampling], generator)))
        scale = 1.0 if standard else scale
        share = _draw((-1, 1), generator)
        position = self.reach_um * abs(share) ** self.focus_bias * (1 if share > 0 else -1)
        amplitude = _draw(self.relief_um, generator)
        relief = random_relief_um(sharp.shape[-2], sharp.shape[-1], amplitude, generator)
        distance = position - relief.to(sharp.device)
        # Cubed: a camera is focused on some layer of the specimen, so the second lies near focus more often than not.
        other_share, other_um = _draw(self.second_layer, generator), self.reach_um * _draw((-1, 1), generator) ** 3
        light = to_linear(sharp)
        blurred = defocus(light, distance, table, margin_px=0)
        if not standard and other_share > 0:
            other = light.flip(-2, -1)  # the same tissue, but not in register
            other_blurred = defocus(other, torch.full_like(distance, other_um), table, margin_px=0)
            seen_um = 0.0
            if self.one_focus > 0 and _draw((0, 1), generator) < self.one_focus:
                seen_um = min(other_um, other_um - position, key=abs)
            seen = other if seen_um == 0 else defocus(other, torch.full_like(distance, seen_um), table, margin_px=0)
            sharp = to_srgb(layered(light, seen, other_share))
            blurred = layered(blurred, other_blurred, other_share)
        clean, label = self.centre(to_srgb(blurred)), self.centre(sharp)
        if scale > 1:
            clean, label, mpp = enlarged(clean, scale), enlarged(label, scale), mpp / scale
        if not standard and self.parallax[1] > 0:
            shift_px = _draw(self.parallax, generator) * abs(position) * scale
            label = shifted(label, shift_px, generator) if shift_px > 0 else label
        camera = Camera(full_well=math.exp(_draw([math.log(end) for end in self.full_well], generator)),
                        noise_px=_draw(self.noise_px, generator),
                        red_noise=_draw(self.red_blue_noise, generator),
                        blue_noise=_draw(self.red_blue_noise, generator),
                        sharpening=_draw(self.sharpening, generator),
                        jpeg_quality=round(_draw(self.jpeg_quality, generator)),
                        chroma_subsampling=_draw((0, 1), generator) < 0.5)
        if standard and self.good_camera_share > 0 and _draw((0, 1), generator) < self.good_camera_share:
            camera = Camera()
        if not standard and self.bayer_share > 0 and _draw((0, 1), generator) < self.bayer_share:
            mosaic = list(MOSAICS)[int(torch.randint(len(MOSAICS), (), generator=generator))]
            camera = camera._replace(noise_px=0.0, mosaic=mosaic)
        of_patch = torch.tensor([mpp, scale], dtype=torch.float32, device=sharp.device)
        return record(clean, camera, generator), clean, label, self.centre(distance).median(), *of_patch


def layered(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Light (3, H, W) through two layers, of which the second holds `share` of the absorption (Beer and Lambert)."""
    return first.clamp(DARKEST, 1) ** (1 - share) * second.clamp(DARKEST, 1) ** share


def enlarged(image: Tensor, scale: float) -> Tensor:
    """The middle of (3, H, W), by bicubic interpolation `scale` times finer, (3, H, W), within [0, 1]."""
    height, width = image.shape[-2:]
    rows, columns = min(height, math.ceil(height / scale)), min(width, math.ceil(width / scale))
    top, left = (height - rows) // 2, (width - columns) // 2
    middle = image[None, :, top:top + rows, left:left + columns]
    return functional.interpolate(middle, (height, width), mode="bicubic", align_corners=False)[0].clamp(0, 1)


def shifted(image: Tensor, deviation_px: float, generator: torch.Generator) -> Tensor:
    """(3, H, W) with each place moved by a distance of this standard deviation along either side, smooth over 64 px."""
    height, width = image.shape[-2:]
    grid = torch.randn(1, 2, height // 64 + 3, width // 64 + 3, generator=generator) * (deviation_px / CUBIC_DEVIATION)
    moves = functional.interpolate(grid, scale_factor=64.0, mode="bicubic", align_corners=False)
    moves = moves[0, :, 64:64 + height, 64:64 + width].to(image.device)
    rows, columns = (torch.arange(size, device=image.device) + 0.5 for size in (height, width))
    places = torch.stack([(columns + moves[0]) / width, (rows[:, None] + moves[1]) / height], -1) * 2 - 1
    return functional.grid_sample(image[None], places[None], mode="bicubic", padding_mode="reflection",
                                  align_corners=False)[0].clamp(0, 1)


def _draw(limits: Range, generator: torch.Generator) -> float:
    return limits[0] + (limits[1] - limits[0]) * float(torch.rand((), generator=generator))
