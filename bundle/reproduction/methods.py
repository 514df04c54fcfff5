"""Tables 1 and 2: methods of one or two stages, each trained with the same steps and scored on whole fields.

    coarse stage    P-former, Restormer (no experts, the gated product), or none
    fine stage      P-diffusion, ResShift, Resfusion, IR-SDE (one denoiser, prompts in the first alone), or none

A method that is not ours to train is scored by its images: `scored` takes folders of them beside, or instead.
No row is corrected afterwards: the colours of the input are given back by the shipped chain alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from bundle.conventions import from_uint8, to_uint8
from bundle.evaluation.chain import ChainOnFields
from bundle.evaluation.fields import list_fields
from bundle.evaluation.protocol import Evaluation
from bundle.evaluation.restored_images import write_inputs
from bundle.evaluation.scores import FieldRestorer
from bundle.evaluation.tables import metric_titles, spread_cell
from bundle.p_diffusion.inferer import ResidualShiftInferer
from bundle.p_diffusion.schedule import ResidualShiftScheduler
from bundle.p_former.network import PFormer
from bundle.restoration import TileRestorer
from bundle.weights import load_weights, save_whole


class Method(NamedTuple):
    """A row of table 1 or 2."""

    title: str  # as in the paper
    stage: str  # whose training it is
    overlay: str  # in configs/ablations/
    after: str = ""  # the row whose network is its coarse stage


METHODS = {
    "uformer": Method("Uformer", "p_former", "table1_uformer"),
    "swinir": Method("SwinIR", "p_former", "table2_swinir"),
    "grl": Method("GRL", "p_former", "table1_grl"),
    "restormer": Method("Restormer", "p_former", "table1_restormer"),
    "p_former": Method("P-former (ours)", "p_former", "table4_f_pp"),
    "resfusion": Method("Resfusion", "p_diffusion", "table1_resfusion"),
    "ir_sde": Method("IR-SDE", "p_diffusion", "table1_ir_sde"),
    "resshift": Method("ResShift", "p_diffusion", "table1_resshift"),
    "p_diffusion": Method("P-diffusion (ours)", "p_diffusion", "table1_p_diffusion"),
    "restormer_resfusion": Method("Restormer + Resfusion", "p_diffusion", "table1_restormer_resfusion", "restormer"),
    "restormer_ir_sde": Method("Restormer + IR-SDE", "p_diffusion", "table1_restormer_ir_sde", "restormer"),
    "restormer_resshift": Method("Restormer + ResShift", "p_diffusion", "table1_restormer_resshift", "restormer"),
    "mop": Method("P-former + P-diffusion (ours)", "p_diffusion", "table5_pp_pe", "p_former"),
}
OF_A_LIBRARY = ("uformer", "swinir", "grl")  # trained where asked for: they need spandrel
ROWS = {1: tuple(name for name in METHODS if name not in OF_A_LIBRARY),
        2: ("restormer", "restormer_resshift", "p_former", "p_diffusion", "mop")}


class Protocol(NamedTuple):
    """How fields are scored, the same for every row."""

    data: Path
    positions_um: list[float] | None = None
    crop_px: int = 0
    lpips_folder: Path | None = None
    split: str = "test"


class Unchanged(nn.Module):
    """In the place of a stage that a method lacks: gives its image back."""

    stride = 1

    def forward(self, image: Tensor, prompt: Tensor) -> Tensor:
        """(B, 3, H, W) as it is."""
        return image


def assembled(parser: ConfigParser, stage: str, weights: Path) -> TileRestorer:
    """A method as a network over tiles.

    Args:
        parser: config of the row's training.
        stage: that was trained.
        weights: its network.pt.

    Raises:
        FileNotFoundError: no weights.
        ValueError: weights of another network.
    """
    prompter = parser.get_parsed_content("prompter")
    trained = load_weights(parser.get_parsed_content("network_def"), weights)
    coarse: Any = trained
    fine: Any = Unchanged()
    inferer = ResidualShiftInferer(ResidualShiftScheduler())
    if stage == "p_diffusion":
        alone = parser.config["train"]["prepare_batch"]["p_former"] is None
        coarse = Unchanged() if alone else parser.get_parsed_content("p_former")
        fine, inferer = trained, parser.get_parsed_content("diffusion_inferer")
    return TileRestorer(prompter, cast(PFormer, coarse), fine, inferer, stop_after=stage, colour_sigma_px=0.0)


class MethodOnFields(ChainOnFields):
    """One method, one result: its last stage, under its own name.

    Args:
        title: of the row.
        network: from `assembled`.
        folder: of the row; the whole chain is kept there as `chain.pt`.
        device: where to run.
    """

    def __init__(self, title: str, network: TileRestorer, folder: Path, device: torch.device) -> None:
        save_whole(network.state_dict(), folder / "chain.pt")
        super().__init__(network, folder / "chain.pt", device)
        self.title = title

    def restore(self, image: Tensor) -> dict[str, Tensor]:
        """The restored field."""
        stages = super().restore(image)
        return {self.title: stages.get("restored", stages["coarse"])}

    def restored_tiles(self, tiles: Tensor) -> Tensor:
        """Tiles (N, 3, H, W) uint8 as this method restores them, each by itself."""
        return torch.stack([to_uint8(self.restore(from_uint8(tile))[self.title]) for tile in tiles])

    def estimate(self, tiles: Tensor) -> None:  # type: ignore[override]
        """Not asked for: the frozen prompts are the same in every row."""

    def prompt_errors(self, blurred: Tensor, sharp: Tensor) -> None:
        """Not asked for."""


class Untouched:
    """Restores nothing: for methods of which only the images are known."""

    weights_sha256: str | None = None
    settings: Mapping[str, object] = {}
    device = torch.device("cpu")

    def restore(self, image: Tensor) -> dict[str, Tensor]:
        """Nothing beside the input."""
        return {}

    def estimate(self, tiles: Tensor) -> None:
        """Nothing."""

    def prompt_errors(self, blurred: Tensor, sharp: Tensor) -> None:
        """Nothing."""


def scored(protocol: Protocol, restorer: FieldRestorer, folder: Path,
           restored: Mapping[str, Path] | None = None) -> dict[str, dict[str, str | None]]:
    """Title -> figures, mean ± deviation over slides and planes, of the input, folders of images and the restorer.

    Raises:
        FileNotFoundError: an image is missing.
        ValueError: the data cannot be evaluated.
    """
    summary = _evaluation(protocol, restorer, folder, restored).run()
    titles = metric_titles(summary)
    del titles["ssim_uniform"]
    return {name: {title: None if figures[metric]["mean"] is None else spread_cell(figures[metric], metric)
                   for metric, title in titles.items()} for name, figures in summary["over_slides"].items()}


def write_planes(protocol: Protocol, folder: Path) -> int:
    """Every plane of the protocol as PNG, for other methods to restore; how many fields there were."""
    evaluation = _evaluation(protocol, Untouched(), folder)
    for field in evaluation.fields:
        write_inputs(evaluation.open(field), evaluation.positions_um, folder)
    return len(evaluation.fields)


def _evaluation(protocol: Protocol, restorer: FieldRestorer, folder: Path,
                restored: Mapping[str, Path] | None = None) -> Evaluation:
    fields = list_fields(protocol.data, protocol.split)
    return Evaluation(fields, restorer, {}, folder, protocol.positions_um, protocol.crop_px,
                      lpips_folder=protocol.lpips_folder, restored=restored, pictures=1)
