"""What trainers are given of a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bundle.prompts.prompter import Prompter
from bundle.training.batches import KeptBatches, PDiffusionBatch, RecordedDefocus, _drawn_noise


def test_a_validation_batch_is_prepared_once_and_never_mistaken_for_another() -> None:
    """Foundation encoders cost more than the network in training; another batch's prompts would be a false metric."""
    calls: list[tuple[Any, ...]] = []

    def prepare(batch: dict[str, Any], *others: Any) -> tuple[Any, Any, tuple, dict]:
        calls.append(others)
        return batch["label"] * 2, batch["label"], (), {}

    kept = KeptBatches(prepare)
    batches = [{"label": torch.full((2, 1), float(n)), "seed": torch.tensor([n, 7])} for n in range(3)]
    cpu = torch.device("cpu")
    for _ in range(2):
        assert [float(kept(batch, cpu)[0][0]) for batch in batches] == [0, 2, 4]
    assert calls == [(cpu, False)] * 3 and kept.seeds == {0, 1, 2, 7}
    assert float(kept({"seed": torch.tensor([1, 7])}, cpu)[0][0]) == 2  # the seeds alone are enough


def test_own_steps_are_drawn_by_each_patch_s_seed() -> None:
    """Drawn by the batch, a patch would train otherwise on two GPUs than on one."""
    like, seeds = torch.zeros(400, 3, 2, 2), torch.arange(400)
    noise, timestep, lot = _drawn_noise(like, seeds, 4)
    again = _drawn_noise(like[:3], seeds[7:10], 4)
    assert all(torch.equal(part[7:10], other) for part, other in zip((noise, timestep, lot), again, strict=True))
    assert set(timestep.tolist()) == {1, 2, 3, 4} and 0.4 < float((lot < 0.5).float().mean()) < 0.6
    with pytest.raises(ValueError, match="own_steps must lie in 0"):
        PDiffusionBatch(RecordedDefocus(), Prompter.__new__(Prompter), None, own_steps=2)
