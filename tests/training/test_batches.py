"""What trainers are given of a batch."""

from __future__ import annotations

from typing import Any

import torch

from bundle.training.batches import KeptBatches


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
