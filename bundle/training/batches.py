"""From a batch of patches, sharp or recorded, to what each stage's trainer needs: (inputs, targets, args, kwargs).

Each …Batch is a `prepare_batch` of MONAI's `SupervisedTrainer`. The frozen stages before the one in training run here,
without gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bundle.conventions import CONTRAST, DEFOCUS_UM, IMAGE, LABEL, MPP
from bundle.optics.colours import keep_colours
from bundle.optics.random_defocus import DefocusSimulator, SimulatedPatches
from bundle.p_former.bands import BandGains
from bundle.p_former.network import PFormer
from bundle.prompts.defocus import DefocusEstimator
from bundle.prompts.prompter import Prompter
from bundle.prompts.sampling import SamplingReader

Prepared = tuple[Any, Any, tuple, dict]
Network = TypeVar("Network", bound=nn.Module)


class RecordedDefocus:
    """In the place of a simulator: patches that a scanner recorded, with the labels of their dataset."""

    def pairs(self, batch: dict[str, Any], device: torch.device | None) -> SimulatedPatches:
        """Planes and targets of a batch of `ReadRandPatchd`."""
        image, label = (torch.as_tensor(batch[key]).to(device=device, dtype=torch.float32) / 255
                        for key in (IMAGE, LABEL))
        defocus_um, contrast = (torch.as_tensor(batch[key]).to(device=device, dtype=torch.float32)
                                for key in (DEFOCUS_UM, CONTRAST))
        return SimulatedPatches(image, label, defocus_um, contrast, torch.ones_like(defocus_um))

    def centre(self, sharp: Tensor) -> Tensor:
        """The patches as they are: nothing was blurred here, so there is no margin to cut off."""
        return sharp


Source = DefocusSimulator | RecordedDefocus


def pairs_of(source: Source, batch: dict[str, Any], device: torch.device | None) -> SimulatedPatches:
    """Defocused and sharp patches of a batch with their truth, simulated or as recorded."""
    if isinstance(source, RecordedDefocus):
        return source.pairs(batch, device)
    sharp = torch.as_tensor(batch[LABEL]).to(device=device, dtype=torch.float32) / 255
    return source(sharp, torch.as_tensor(batch[MPP], dtype=torch.float32), torch.as_tensor(batch["seed"]))


class KeptBatches:
    """Keeps what `prepare` made of each batch: for validation and wherever the same patches come again.

    Saves the simulation and the frozen prompts; see docs/decisions/0005-frozen-prompts.md.

    Attributes:
        seeds: of the patches that are kept, for a dataset that need not draw them again.
    """

    def __init__(self, prepare: Callable[..., Prepared]) -> None:
        self.prepare = prepare
        self.kept: dict[tuple[int, ...], Prepared] = {}
        self.seeds: set[int] = set()

    def __call__(self, batchdata: dict[str, Any], device: torch.device | None = None, non_blocking: bool = False,
                 **kwargs: Any) -> Prepared:
        """What `prepare` gives; a batch is known by the seeds of its patches."""
        seeds = tuple(torch.as_tensor(batchdata["seed"]).tolist())
        if seeds not in self.kept:
            self.kept[seeds] = self.prepare(batchdata, device, non_blocking, **kwargs)
            self.seeds.update(seeds)
        return self.kept[seeds]


def frozen(network: Network) -> Network:
    """`network` in evaluation mode, without gradients."""
    network.eval().requires_grad_(False)
    return network


class DefocusBatch:
    """Stage 1: defocused patch -> signed distance and contrast, targets (B, 2)."""

    def __init__(self, simulate: Source) -> None:
        self.simulate = simulate

    def __call__(self, batchdata: dict[str, Any], device: torch.device | None = None, non_blocking: bool = False,
                 **kwargs: Any) -> Prepared:
        """Inputs (B, 3, H, W), targets (B, 2)."""
        drawn = pairs_of(self.simulate, batchdata, device)
        return drawn.image, torch.stack([drawn.defocus_um, drawn.contrast], 1), (), {}


class SeenBatch:
    """Stage 1b: what a frozen backbone and the local spectra see of a patch -> the targets of stage 1."""

    def __init__(self, simulate: Source, estimator: DefocusEstimator) -> None:
        self.simulate, self.estimator = simulate, estimator
        frozen(estimator.backbone)

    @torch.no_grad()
    def __call__(self, batchdata: dict[str, Any], device: torch.device | None = None, non_blocking: bool = False,
                 **kwargs: Any) -> Prepared:
        """Inputs: features (B, C, h, w); targets (B, 2); spectra (B, S, …) as argument."""
        drawn = pairs_of(self.simulate, batchdata, device)
        features, spectra = self.estimator.to(device).seen(drawn.image)
        return features, torch.stack([drawn.defocus_um, drawn.contrast], 1), (spectra,), {}


class SamplingBatch:
    """Stage 1c: spectra of a patch -> log2 of its oversampling. A scanner's recorded patches have none."""

    def __init__(self, simulate: Source, sampling: SamplingReader) -> None:
        self.simulate, self.sampling = simulate, sampling

    @torch.no_grad()
    def __call__(self, batchdata: dict[str, Any], device: torch.device | None = None, non_blocking: bool = False,
                 **kwargs: Any) -> Prepared:
        """Inputs (B, 6 K), targets (B, 1)."""
        drawn = pairs_of(self.simulate, batchdata, device)
        return self.sampling.to(device).seen(drawn.image), drawn.oversampling.log2()[:, None], (), {}


class EncoderBatch:
    """Compact encoder: sharp and blurred patches of the same tissue; the target is the sharp patch itself."""

    def __init__(self, simulate: Source) -> None:
        self.simulate = simulate

    def __call__(self, batchdata: dict[str, Any], device: torch.device | None = None, non_blocking: bool = False,
                 **kwargs: Any) -> Prepared:
        """Inputs and targets (B, 3, H, W); a seed for each patch's mask as argument."""
        sharp = torch.as_tensor(batchdata[LABEL]).to(device=device, dtype=torch.float32) / 255
        sharp = self.simulate.centre(sharp)
        return sharp, sharp, (torch.as_tensor(batchdata["seed"]),), {}


class PromptBatch:
    """Stage 2: tokens of the defocused patch and P_D -> tokens of the sharp one."""

    def __init__(self, simulate: Source, prompter: Prompter) -> None:
        self.simulate, self.prompter = simulate, frozen(prompter)

    @torch.no_grad()
    def __call__(self, batchdata: dict[str, Any], device: torch.device | None = None, non_blocking: bool = False,
                 **kwargs: Any) -> Prepared:
        """Inputs P_LP (B, N, D), targets P_HP (B, N, D), P_D as argument."""
        self.prompter.to(device)
        drawn = pairs_of(self.simulate, batchdata, device)
        blurred, sharp = self.prompter.encoder(drawn.image), self.prompter.encoder(drawn.label)
        return blurred, sharp, (self.prompter.estimator(drawn.image).prompt,), {}


class PFormerBatch:
    """Stage 3: defocused patch and P_P -> sharp patch.

    Args:
        simulate: draws the defocus, or hands on what was recorded.
        prompter: frozen.
        gate_prompts: what the gates are told, pooled and side by side, instead of P_P (ablation); see `Prompter`.
    """

    def __init__(self, simulate: Source, prompter: Prompter,
                 gate_prompts: Sequence[str] | None = None) -> None:
        self.simulate, self.prompter, self.gate_prompts = simulate, frozen(prompter), gate_prompts

    @torch.no_grad()
    def __call__(self, batchdata: dict[str, Any], device: torch.device | None = None, non_blocking: bool = False,
                 **kwargs: Any) -> Prepared:
        """Inputs and targets (B, 3, H, W), P_P (B, N, D) or the gate's prompts (B, 1, ΣD) as argument."""
        self.prompter.to(device)
        drawn = pairs_of(self.simulate, batchdata, device)
        if self.gate_prompts is None:
            prompt = self.prompter.pathology(drawn.image)
        else:
            prompt = self.prompter.gate_prompt(drawn.image, self.gate_prompts)
        return drawn.image, drawn.label, (prompt,), {}


class BandBatch:
    """Stage 3c: spectra of the coarse image and P_D -> what the squared error of any gains depends on.

    Small beside the images, so that `KeptBatches` can hold thousands of patches.

    Args:
        simulate: draws the defocus, or hands on what was recorded; patches of whole cells.
        prompter: frozen.
        p_former: frozen.
        bands: its reader is trained.
        colour_sigma_px, colour_gamma: see `keep_colours`; as in restoring, it comes before the gains.
    """

    def __init__(self, simulate: Source, prompter: Prompter, p_former: PFormer, bands: BandGains,
                 colour_sigma_px: float = 16.0, colour_gamma: float | None = None) -> None:
        self.simulate, self.prompter = simulate, frozen(prompter)
        self.p_former, self.bands = frozen(p_former), bands
        self.colours = (colour_sigma_px, colour_gamma)

    @torch.no_grad()
    def __call__(self, batchdata: dict[str, Any], device: torch.device | None = None, non_blocking: bool = False,
                 **kwargs: Any) -> Prepared:
        """Inputs (B, F, h, w) and targets, the products of `BandGains`, (B, 3, 2 N + 1, 2 N + 1, h, w)."""
        drawn = pairs_of(self.simulate, batchdata, device)
        prompts = self.prompter.to(device)(drawn.image)
        coarse = self.p_former.to(device)(drawn.image, prompts.pathology)
        coarse = keep_colours(drawn.image, coarse, *self.colours)
        seen = self.bands.to(device).seen(coarse, prompts.defocus)[..., :-1, :-1]
        return seen, self.bands.products(drawn.image, coarse, drawn.label), (), {}


class PDiffusionBatch:
    """Stage 4: coarse image, noise, timestep and prompts -> sharp patch.

    Args:
        simulate: draws the defocus, or hands on what was recorded.
        prompter: frozen.
        p_former: frozen; None: P-diffusion stands alone and starts from the defocused image.
        bands: the coarse stage's last step, frozen; None: the P-former's result is the coarse image.
        steps: T.
        own_steps: share of the patches whose x_t comes of the network's own steps; see `ResidualShiftInferer`.
        colour_sigma_px, colour_gamma: see `keep_colours`; before the bands, and only where there are any.
    """

    def __init__(self, simulate: Source, prompter: Prompter, p_former: PFormer | None,
                 steps: int = 4, own_steps: float = 0.0, bands: BandGains | None = None,
                 colour_sigma_px: float = 16.0, colour_gamma: float | None = None) -> None:
        if not 0 <= own_steps <= 1:
            raise ValueError(f"own_steps must lie in 0..1, got {own_steps}.")
        self.simulate, self.prompter, self.steps, self.own_steps = simulate, frozen(prompter), steps, own_steps
        self.p_former = None if p_former is None else frozen(p_former)
        self.bands = None if bands is None else frozen(bands)
        self.colours = (colour_sigma_px, colour_gamma)

    @torch.no_grad()
    def __call__(self, batchdata: dict[str, Any], device: torch.device | None = None, non_blocking: bool = False,
                 **kwargs: Any) -> Prepared:
        """Inputs coarse (B, 3, H, W), targets (B, 3, H, W); label, noise, timestep, prompts as arguments; own steps."""
        self.prompter.to(device)
        drawn = pairs_of(self.simulate, batchdata, device)
        prompts = self.prompter(drawn.image)
        coarse = drawn.image
        if self.p_former is not None:
            coarse = self.p_former.to(device)(drawn.image, prompts.pathology).clamp(0, 1)
            if self.bands is not None:
                coarse = keep_colours(drawn.image, coarse, *self.colours)
                coarse = self.bands.to(device)(drawn.image, coarse, prompts.defocus).clamp(0, 1)
        seeds = torch.as_tensor(batchdata["seed"])
        noise, timestep = _drawn_noise(drawn.label, seeds, self.steps)
        own = _drawn_own_steps(drawn.label, seeds, self.steps, self.own_steps) if self.own_steps else {}
        return coarse, drawn.label, (drawn.label, noise, timestep, prompts), own


def _drawn_noise(like: Tensor, seeds: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Noise and a timestep of each patch, from the patch's own seed."""
    noises, timesteps = [], []
    for seed in seeds.tolist():
        generator = torch.Generator().manual_seed(seed ^ 0x5DEECE66)
        noises.append(torch.randn(like.shape[1:], generator=generator))
        timesteps.append(int(torch.randint(1, steps + 1, (), generator=generator)))
    return torch.stack(noises).to(like.device), torch.tensor(timesteps, device=like.device)


def _drawn_own_steps(like: Tensor, seeds: Tensor, steps: int, share: float) -> dict[str, Tensor]:
    """Keywords of `ResidualShiftInferer`: which patches take their own steps, and the noise of these."""
    own, noises = [], []
    for seed in seeds.tolist():
        generator = torch.Generator().manual_seed(seed ^ 0x2545F491)
        own.append(float(torch.rand((), generator=generator)) < share)
        noises.append(torch.randn((steps - 1, *like.shape[1:]), generator=generator))
    return {"own": torch.tensor(own, device=like.device), "later_noise": torch.stack(noises).to(like.device)}
