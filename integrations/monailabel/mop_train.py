"""MONAI Label's training: the P-former goes on learning from pairs of one field, out of focus and in focus.

A pair is an image of the datastore and the sharp image that was saved as its final label, of the same size and
registered. The other stages stay as they are. The weights are those of the whole chain, and restoring uses them from
the next request on; to go back, remove the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from monai.transforms import Compose, EnsureTyped, RandFlipd, RandRotate90d, RandSpatialCropd
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask
from torch import Tensor

from bundle.conventions import IMAGE, LABEL, from_uint8
from bundle.loading import CONFIG, WEIGHTS, load_tile_restorer
from bundle.prompts.prompter import Prompter
from bundle.restoration import TileRestorer
from bundle.slides.reader import open_image
from bundle.slides.region import MOST_PIXELS
from bundle.weights import save_whole

KEYS = (IMAGE, LABEL)


class Plan(NamedTuple):
    """What a request may choose."""

    max_epochs: int = 10
    crops: int = 16  # of each pair in an epoch
    patch_px: int = 128
    batch_size: int = 4
    learning_rate: float = 1e-5
    seed: int = 0


class PairBatch:
    """`prepare_batch` of the P-former: pairs instead of simulated defocus."""

    def __init__(self, prompter: Prompter) -> None:
        self.prompter = prompter.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, batchdata: dict[str, Tensor], device: torch.device | None = None, non_blocking: bool = False,
                 **kwargs: Any) -> tuple[Tensor, Tensor, tuple[Tensor], dict[str, Any]]:
        """Inputs and targets (B, 3, H, W), P_P as argument."""
        image, label = (batchdata[key].to(device) for key in KEYS)
        return image, label, (self.prompter.pathology(image),), {}


class PairTrainTask(TrainTask):
    """Fine-tuning of the P-former as a task of MONAI Label.

    Args:
        trained: where the weights go, and from where training goes on if they are there.
        device: "cpu" or "cuda".
    """

    def __init__(self, trained: Path, device: str) -> None:
        super().__init__("Trains the P-former on pairs: images and their sharp final labels")
        self._trained, self._device = trained, device

    def config(self) -> dict[str, Any]:
        """What a request may choose, with its defaults."""
        return Plan()._asdict()

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train and write the weights.

        Returns:
            Pairs, steps, and the mean absolute error of the P-former on the pairs' centres before and after.

        Raises:
            ValueError: there is no pair, one does not fit, or a parameter is out of range.
        """
        plan = Plan(**{name: request[name] for name in Plan._fields if name in request})
        start = self._trained if self._trained.is_file() else WEIGHTS
        network = load_tile_restorer(CONFIG, start, self._device)
        if plan.patch_px % network.stride or min(plan[:5]) <= 0:
            raise ValueError(f"patch_px must be a multiple of {network.stride} and every number positive, got {plan}.")
        pairs = [read_pair(record, plan.patch_px) for record in datastore.datalist()]
        if not pairs:
            raise ValueError("training needs at least one image with a final label, the datastore has none.")
        before = error_of(network, pairs, plan.patch_px)
        steps = train(network, pairs, plan)
        after = error_of(network, pairs, plan.patch_px)
        save_whole(network.state_dict(), self._trained)
        return {"pairs": len(pairs), "steps": steps, "l1_before": before, "l1_after": after}


def read_pair(record: dict[str, str], patch_px: int) -> dict[str, Tensor]:
    """{"image": path, "label": path} -> two (3, H, W) in [0, 1].

    Raises:
        ValueError: not two images of one size, or smaller than a patch.
    """
    pair = {}
    for key in KEYS:
        with open_image(record[key]) as reader:
            if reader.shape[0] * reader.shape[1] > MOST_PIXELS or min(reader.shape) < patch_px:
                raise ValueError(f"an image of a pair must have {patch_px} px a side and at most {MOST_PIXELS} in all, "
                                 f"{reader.path.name} has {reader.shape}.")
            pair[key] = from_uint8(torch.from_numpy(reader.read(0, 0, *reader.shape)).permute(2, 0, 1))
    if pair[IMAGE].shape != pair[LABEL].shape:
        sizes = " and ".join(str(tuple(pair[key].shape[1:])) for key in KEYS)
        raise ValueError(f"image and label of a pair must have one size, {Path(record[IMAGE]).name} has {sizes}.")
    return pair


def train(network: TileRestorer, pairs: list[dict[str, Tensor]], plan: Plan) -> int:
    """Some epochs of L1 on random crops; changes `network.p_former` in place; the steps that it took."""
    device = next(network.parameters()).device
    torch.manual_seed(plan.seed)  # of the loader's order: this process does nothing else
    crop = Compose([RandSpatialCropd(KEYS, (plan.patch_px, plan.patch_px), random_size=False),
                    RandFlipd(KEYS, 0.5, 0), RandRotate90d(KEYS, 0.75, 3), EnsureTyped(KEYS, track_meta=False)])
    crop.set_random_state(plan.seed)
    loader = DataLoader(Dataset(pairs * plan.crops, crop), batch_size=plan.batch_size, shuffle=True)
    p_former = network.p_former.requires_grad_(True)
    optimizer = torch.optim.AdamW(p_former.parameters(), plan.learning_rate)
    trainer = SupervisedTrainer(device, plan.max_epochs, loader, p_former, optimizer, torch.nn.L1Loss(),
                                prepare_batch=PairBatch(network.prompter))
    trainer.run()
    network.eval()
    return int(trainer.state.iteration)


@torch.no_grad()
def error_of(network: TileRestorer, pairs: list[dict[str, Tensor]], patch_px: int) -> float:
    """Mean |coarse - label| over the pairs' centres, of [0, 1]."""
    device, total = next(network.parameters()).device, 0.0
    for pair in pairs:
        top, left = ((side - patch_px) // 2 for side in pair[IMAGE].shape[1:])
        image, label = (pair[key][None, :, top:top + patch_px, left:left + patch_px].to(device) for key in KEYS)
        coarse = network.p_former(image, network.prompter.pathology(image)).clamp(0, 1)
        total += float((coarse - label).abs().mean())
    return total / len(pairs)
