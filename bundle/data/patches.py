"""Random patches of fields, each a function of (seed, epoch, index) alone.

A patch does not depend on the worker, the batch or the patches before it: a training run that is killed and goes on
draws what the unbroken run would have drawn.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from monai.data import DistributedSampler
from monai.transforms import Compose
from torch.utils.data import DataLoader, Dataset

from bundle.conventions import LABEL
from bundle.data.datalist import LOCATION


class SeededPatches(Dataset):
    """`length` random patches an epoch.

    Args:
        fields: loaded records whose label is (3, H, W), drawn as often as their area says; or records of recorded
            planes, which name the patches that may be drawn, each as often as the others.
        transform: random transforms, a MONAI Compose; seeded anew for every patch.
        length: patches an epoch.
        seed: of the run.
        repeat: True draws the same patches every epoch: a validation set.
        kept: seeds of patches that somebody keeps: of these the seed alone is given.
    """

    def __init__(self, fields: Sequence[dict[str, Any]], transform: Compose, length: int, seed: int = 0,
                 repeat: bool = False, kept: Collection[int] = ()) -> None:
        if not len(fields):
            raise ValueError("patches need at least one field, got none.")
        self.fields, self.transform, self.length, self.seed, self.repeat = fields, transform, length, seed, repeat
        self.kept, self.epoch = kept, 0
        weights = np.array([_weight(field) for field in fields], dtype=float)
        self.share = weights / weights.sum()

    def set_epoch(self, epoch: int) -> None:
        """Draw the patches of this epoch from now on."""
        self.epoch = 0 if self.repeat else epoch

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A record with `label` (3, H, W), `mpp`, `file` and `seed`, which fixes its defocus."""
        random = np.random.RandomState(np.random.SeedSequence([self.seed, self.epoch, index]).generate_state(4))
        seed = int(random.randint(2**62, dtype=np.int64))
        if seed in self.kept:
            return {"seed": seed}
        record = dict(self.fields[random.choice(len(self.fields), p=self.share)])
        self.transform.set_random_state(state=random)
        return {**self.transform(record), "seed": seed}


def _weight(field: dict[str, Any]) -> float:
    return len(field[LOCATION]) if LOCATION in field else float(np.prod(field[LABEL].shape[-2:]))


def patch_loader(dataset: SeededPatches, batch_size: int, rank: int = 0, world_size: int = 1,
                 workers: int = 0) -> DataLoader:
    """Batches of one process: all processes together draw the batches that one alone would draw.

    Args:
        dataset: patches of all processes.
        batch_size: of all processes together.
        rank, world_size: which process of how many.
        workers: that load for this process.

    Raises:
        ValueError: the batch cannot be shared equally.
    """
    if batch_size % world_size:
        raise ValueError(f"a batch must be shared equally by {world_size} processes, got a batch of {batch_size}.")
    sampler = DistributedSampler(dataset, even_divisible=False, num_replicas=world_size, rank=rank, shuffle=False)
    return DataLoader(dataset, batch_size // world_size, sampler=sampler, num_workers=workers)
