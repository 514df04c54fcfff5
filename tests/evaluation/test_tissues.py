"""The same field in other colours and contrasts."""

from __future__ import annotations

import torch

from bundle.evaluation.tissues import TISSUES


def test_other_tissue_is_other_and_stays_the_same() -> None:
    """Figures of two weights on two draws could not be compared."""
    sharp = 0.2 + 0.6 * torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(2))
    shown = {name: change(sharp, 3) for name, change in TISSUES.items()}
    assert torch.equal(shown["own"], sharp) and torch.equal(shown["swapped"][0], sharp[2])
    assert torch.equal(shown["grey"][0], shown["grey"][2])
    for name in ("mixed", "contrast"):
        again, other = (TISSUES[name](sharp, number) for number in (3, 4))
        assert torch.equal(again, shown[name]) and not torch.equal(other, again)
        assert 0.02 < float((shown[name] - sharp).abs().mean()) < 0.5
