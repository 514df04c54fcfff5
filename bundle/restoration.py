"""The chain: tile -> prompts -> P-former -> P-diffusion -> restored tile, as one network with one state dict.

    image       defocused tile                              (B, 3, H, W), [0, 1]
    coarse      what the P-former makes of it               (B, 3, H, W), [0, 1]
    restored    what leaves the chain                       (B, 3, H, W), [0, 1]
    binning     1, or 2 where a camera oversamples: then pixels of several sizes are restored, and averaged
    location    (row, col) of the tile's upper left pixel   (B, 2) int64; fixes its noise

Any size goes: tiles are padded by reflection to a multiple of the networks' strides and cropped again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bundle.conventions import check_image
from bundle.optics.binning import binned, unbinned
from bundle.optics.colours import keep_colours
from bundle.p_diffusion.denoiser import Denoiser
from bundle.p_diffusion.inferer import ResidualShiftInferer
from bundle.p_former.bands import BandGains
from bundle.p_former.network import PFormer
from bundle.prompts.defocus import DefocusEstimator
from bundle.prompts.mixture import PromptMixture
from bundle.prompts.prompter import Prompter
from bundle.prompts.sampling import SamplingReader, binning_of, log2_oversampling_of

STAGES = ("p_former", "p_diffusion")
BINNINGS = (1, 2)  # what was measured
PROBES = 36  # tiles of an image that are looked at to choose one, at most


def check_binning(binning: int | None) -> None:
    """Refuse a binning that nothing was measured with; None: the image itself says it.

    Raises:
        ValueError: not 1 or 2.
    """
    if binning is not None and binning not in BINNINGS:
        raise ValueError(f"binning must be 1 or 2, got {binning}.")


class Restoration(NamedTuple):
    """A batch of restored tiles and what was learned on the way."""

    restored: Tensor  # (B, 3, H, W), [0, 1]
    coarse: Tensor  # (B, 3, H, W), [0, 1]
    focus_map_um: Tensor  # (B, 1, H, W), signed
    defocus_um: Tensor  # (B,), signed
    contrast: Tensor  # (B,)
    seconds: dict[str, float]  # prompts, p_former, p_diffusion
    spread: Tensor | None = None  # (B, 1, H, W) standard deviation over the samples; None of a single one
    binning: int = 1  # it was restored in


class _Pass(NamedTuple):
    """What the chain makes of pixels of one size, on the pixels of the image."""

    images: list[Tensor]  # coarse, then P-diffusion's samples, (B, 3, H, W) each
    focus_map_um: Tensor  # (B, 1, H, W)
    prompts: PromptMixture
    seconds: dict[str, float]


class TileRestorer(nn.Module):
    """MoP on tiles.

    Args:
        prompter: tile -> prompts.
        p_former: the coarse stage.
        denoiser: the network of the fine stage.
        inferer: its sampling.
        stop_after: "p_diffusion" for the whole chain, "p_former" for the coarse stage alone.
        skip_in_focus: leave pixels untouched where the focus map says that they are in focus.
        in_focus_um: below this distance a pixel is in focus; from twice this on it is fully restored.
        colour_sigma_px, colour_gamma: see `keep_colours`.
        binned_colour_gamma: in the place of `colour_gamma` where an image is binned: mostly a microscope's camera
            wrote it, whose tone curve is not known.
        seed: of P-diffusion's noise.
        bands: the last step of the coarse stage; None leaves the P-former's result as it is.
        sampling: tells whether an image oversamples; None: no image does.
        sampling_threshold: see `binning_of`.
        binned_sizes: pixels along a side that are restored as one where an image is binned, each for itself; the result
            is the mean. What one size takes for detail and the others do not is mostly none.
        samples: of P-diffusion, with the seeds from `seed` on; the first is the result, all together give `spread`.
    """

    OPTIONS = ("stop_after", "skip_in_focus", "in_focus_um", "colour_sigma_px", "colour_gamma", "binned_colour_gamma",
               "sampling_threshold", "binned_sizes", "seed")

    def __init__(self, prompter: Prompter, p_former: PFormer, denoiser: Denoiser, inferer: ResidualShiftInferer,
                 stop_after: str = "p_diffusion", skip_in_focus: bool = False, in_focus_um: float = 0.4,
                 colour_sigma_px: float = 16.0, colour_gamma: float | None = None,
                 binned_colour_gamma: float | None = 1.0, seed: int = 0, samples: int = 1,
                 bands: BandGains | None = None, sampling: SamplingReader | None = None,
                 sampling_threshold: float = 0.25,
                 binned_sizes: Sequence[int] = (1, 2, 4)) -> None:
        super().__init__()
        if stop_after not in STAGES:
            raise ValueError(f"stop_after must be one of {STAGES}, got {stop_after!r}.")
        if samples < 1:
            raise ValueError(f"samples must be positive, got {samples}.")
        for name, gamma in (("colour_gamma", colour_gamma), ("binned_colour_gamma", binned_colour_gamma)):
            if gamma is not None and gamma <= 0:
                raise ValueError(f"{name} must be positive, got {gamma}.")
        if BINNINGS[-1] not in binned_sizes or min(binned_sizes) < 1:
            raise ValueError(f"binned_sizes must be positive and hold {BINNINGS[-1]}, got {tuple(binned_sizes)}.")
        self.prompter, self.p_former, self.bands, self.denoiser = prompter, p_former, bands, denoiser
        self.inferer, self.scheduler = inferer, inferer.scheduler
        self.sampling, self.sampling_threshold = sampling, sampling_threshold
        self.binned_sizes = tuple(binned_sizes)
        self.stop_after, self.skip_in_focus, self.in_focus_um = stop_after, skip_in_focus, in_focus_um
        self.colour_sigma_px, self.seed, self.samples = colour_sigma_px, seed, samples
        self.colour_gamma, self.binned_colour_gamma = colour_gamma, binned_colour_gamma
        self.stride = max(p_former.stride, denoiser.stride, prompter.estimator.stride)

    @property
    def options(self) -> dict[str, object]:
        """What beside image, networks and place decides the pixels, by name: JSON values, or tuples of them."""
        return {name: getattr(self, name) for name in self.OPTIONS}

    def forward(self, image: Tensor, location: Tensor | None = None) -> Tensor:
        """Restored tiles (B, 3, H, W) in [0, 1] of tiles (B, 3, H, W) in [0, 1]; see `restore`."""
        return self.restore(image, location).restored

    def binning_of(self, tiles: Iterable[Tensor], camera: Callable[[], float] | None = None) -> int:
        """In which binning an image should be restored; see `bundle.prompts.sampling.binning_of`."""
        return 1 if self.sampling is None else binning_of(self.sampling, tiles, self.sampling_threshold, camera)

    def log2_oversampling_of(self, tiles: Iterable[Tensor]) -> float:
        """log2 of what these tiles of a camera say, each (3, h, w) in [0, 1]; 0 where nothing reads it."""
        return 0.0 if self.sampling is None else log2_oversampling_of(self.sampling, tiles)

    def restore(self, image: Tensor, location: Tensor | None = None, binning: int = 1) -> Restoration:
        """Restore tiles and keep what was learned on the way.

        On a CPU they go one by one: its kernels round otherwise in another batch, and a batch saves no time there. So a
        tile's pixels are the same bit by bit beside any others.

        Args:
            image: (B, 3, H, W), [0, 1], any size.
            location: (B, 2) int64; None places every tile at (0, 0).
            binning: 2 restores pixels of `binned_sizes`; prompts and focus map are those of 2 x 2 pixels.

        Raises:
            ValueError: `image` is no batch of RGB tiles, or `binning` is not 1 or 2.
        """
        check_image(image)
        check_binning(binning)
        if location is None:
            location = torch.zeros(image.shape[0], 2, dtype=torch.int64, device=image.device)
        if image.device.type == "cpu" and len(image) > 1:
            each = zip(image.split(1), location.split(1), strict=True)
            return _joined([self.restore_together(*tile, binning) for tile in each])
        return self.restore_together(image, location, binning)

    def restore_together(self, image: Tensor, location: Tensor, binning: int = 1) -> Restoration:
        """`restore` of all tiles in one pass on any device, as exported graphs want it."""
        sizes = self.binned_sizes if binning > 1 else (1,)
        gamma = self.colour_gamma if binning == 1 else self.binned_colour_gamma
        passes = [self._pass(image, location, size, gamma) for size in sizes]
        told = passes[sizes.index(binning)]
        images = zip(*(one.images for one in passes), strict=True)
        coarse, *drawn = (torch.stack(of_sizes).mean(0) for of_sizes in images)
        focus_map = told.focus_map_um
        if self.skip_in_focus:
            coarse, *drawn = (self._sparing(image, x, focus_map) for x in (coarse, *drawn))
        spread = None
        if len(drawn) > 1:  # of one size: averaging sizes makes samples alike, but no place surer
            variances = [torch.stack(one.images[1:]).var(0).mean(1, keepdim=True) for one in passes]
            spread = torch.stack(variances).mean(0).sqrt()
        seconds = {stage: sum(one.seconds[stage] for one in passes) for stage in told.seconds}
        return Restoration(drawn[0] if drawn else coarse, coarse, focus_map, told.prompts.defocus_um,
                           told.prompts.contrast, seconds, spread, binning)  # fmt: skip

    def _pass(self, image: Tensor, location: Tensor, size: int, gamma: float | None) -> _Pass:
        """The chain over `image` with `size` x `size` pixels taken together, back on its pixels."""
        small = binned(image, size)
        height, width = small.shape[-2:]
        padded = self._padded(small)
        started = time.perf_counter()
        prompts = self.prompter(padded)
        focus_map = self.prompter.estimator.map_of(prompts.defocus, padded.shape[-2:])
        prompted = time.perf_counter()
        coarse = self._coarse(padded, prompts, gamma)
        formed = time.perf_counter()
        images = [coarse]
        if self.stop_after == "p_diffusion":
            for seed in range(self.seed, self.seed + self.samples):
                sample = self.inferer.sample(coarse, self.denoiser, prompts, location // size, seed)
                images.append(self._fine(padded, coarse, sample, gamma))
        diffused = time.perf_counter()
        focus_map, *images = (unbinned(x[..., :height, :width], size, *image.shape[-2:]) for x in (focus_map, *images))
        if size > 1:  # cubic interpolation overshoots
            images = [x.clamp(0, 1) for x in images]
        seconds = {"prompts": prompted - started, "p_former": formed - prompted, "p_diffusion": diffused - formed}
        return _Pass(images, focus_map, prompts, seconds)

    def restore_given(self, image: Tensor, noise: Sequence[Tensor]) -> Tensor:
        """The chain as one expression, for exported graphs: nothing is padded, drawn or skipped.

        Args:
            image: (B, 3, H, W), [0, 1]; H and W are multiples of `stride`.
            noise: P-diffusion's draws, T of (B, 3, H, W); none stops after the P-former.
        """
        if not noise and self.bands is None:  # then P_P is all that a graph has to carry
            coarse = self.p_former(image, self.prompter.pathology(image))
            return keep_colours(image, coarse, self.colour_sigma_px, self.colour_gamma)
        prompts = self.prompter(image)
        coarse = self._coarse(image, prompts, self.colour_gamma)
        if not noise:
            return coarse
        sample = self.inferer.sample_with(coarse, self.denoiser, prompts, noise)
        return self._fine(image, coarse, sample, self.colour_gamma)

    def _coarse(self, image: Tensor, prompts: PromptMixture, gamma: float | None) -> Tensor:
        """The coarse stage: P-former, colours, bands; no band holds anything of a place's colour."""
        coarse = keep_colours(image, self.p_former(image, prompts.pathology), self.colour_sigma_px, gamma)
        return coarse if self.bands is None else self.bands(image, coarse, prompts.defocus).clamp(0, 1)

    def _padded(self, image: Tensor) -> Tensor:
        """Mirrored to the right and below, up to a multiple of the stride."""
        for axis in (-2, -1):
            length = image.shape[axis]
            wanted = -(-length // self.stride) * self.stride
            # A mirror holds no more than the image: small images are mirrored back and forth.
            position = torch.arange(wanted, device=image.device) % max(1, 2 * length - 2)
            position = torch.where(position < length, position, 2 * length - 2 - position).clamp(min=0)
            image = image.index_select(axis, position)
        return image

    def _fine(self, image: Tensor, coarse: Tensor, sample: Tensor, gamma: float | None) -> Tensor:
        """P-diffusion's `sample` in the input's colours; with bands in those of the coarse image."""
        return keep_colours(image if self.bands is None else coarse, sample, self.colour_sigma_px, gamma)

    def _sparing(self, image: Tensor, result: Tensor, focus_map: Tensor) -> Tensor:
        """`result` where the tissue is out of focus, the very pixels of `image` where it is in focus."""
        weight = (focus_map.abs() / self.in_focus_um - 1).clamp(0, 1)
        return torch.where(weight > 0, image + weight * (result - image), image)


def _joined(tiles: Sequence[Restoration]) -> Restoration:
    """One restoration of several."""
    restored, coarse, focus_map, defocus, contrast, seconds, spread, binning = zip(*tiles, strict=True)
    return Restoration(torch.cat(restored), torch.cat(coarse), torch.cat(focus_map), torch.cat(defocus),
                       torch.cat(contrast), {stage: sum(tile[stage] for tile in seconds) for stage in seconds[0]},
                       None if spread[0] is None else torch.cat(spread), binning[0])


class BinnedEstimator:
    """D_φ for images that are restored in a binning: it sees the pixels that the other networks see."""

    def __init__(self, estimator: DefocusEstimator, binning: int) -> None:
        self.estimator, self.binning = estimator, binning

    def focus_map(self, image: Tensor) -> Tensor:
        """Signed distances (B, 1, H, W), µm, of tiles (B, 3, H, W) in [0, 1]."""
        small = self.estimator.focus_map(binned(image, self.binning))
        return unbinned(small, self.binning, image.shape[-2], image.shape[-1], "bilinear")
