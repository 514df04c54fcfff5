"""What trainers are given of a batch."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from bundle.p_diffusion.inferer import ResidualShiftInferer
from bundle.prompts.prompter import Prompter
from bundle.training.batches import KeptBatches, PDiffusionBatch, RecordedDefocus, _drawn_noise, _drawn_own_steps


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
    like, seeds = torch.zeros(400, 3, 8, 8), torch.arange(400)
    drawn, again = _drawn_own_steps(like, seeds, 4, 0.5), _drawn_own_steps(like[:3], seeds[7:10], 4, 0.5)
    assert all(torch.equal(drawn[name][7:10], again[name]) for name in drawn)
    assert 0.4 < float(drawn["own"].float().mean()) < 0.6
    # Noise of the steps that repeats that of the start adds up to a pattern that sampling never shows.
    draws = torch.cat([_drawn_noise(like, seeds, 4)[0][:, None], drawn["later_noise"]], 1)
    together = torch.corrcoef(draws.transpose(0, 1).flatten(1))
    assert draws.shape == (400, 4, 3, 8, 8) and float((together - torch.eye(4)).abs().max()) < 0.02
    assert drawn.keys() <= inspect.signature(ResidualShiftInferer.__call__).parameters.keys()
    with pytest.raises(ValueError, match="own_steps must lie in 0"):
        PDiffusionBatch(RecordedDefocus(), Prompter.__new__(Prompter), None, own_steps=2)
