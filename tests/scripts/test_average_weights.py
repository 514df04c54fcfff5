"""The mean of several weights of one network."""

from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn


def test_every_entry_is_the_mean(script: ModuleType, tmp_path: Path) -> None:
    """Also of a batch norm, whose count of batches has no mean."""
    networks = [nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)) for _ in range(3)]
    for number, network in enumerate(networks):
        network[1].num_batches_tracked += 10 + number
        torch.save(network.state_dict(), tmp_path / f"{number}.pt")
    assert script.main([*(str(tmp_path / f"{number}.pt") for number in range(3)), str(tmp_path / "mean.pt")]) == 0
    state = torch.load(tmp_path / "mean.pt", weights_only=True)
    expected = sum(network[0].weight for network in networks) / 3
    assert torch.allclose(state["0.weight"], expected) and state["0.weight"].dtype == torch.float32
    assert int(state["1.num_batches_tracked"]) == 10
    networks[0].load_state_dict(state)


@pytest.mark.parametrize(("other", "sentence"), [
    ({"weight": torch.zeros(3)}, "of one network, weight differs"),
    ({"weight": torch.zeros(2), "bias": torch.zeros(1)}, "of one network, bias differs"),
    ({"weight": 3}, "of one network, weight differs"),
    (None, "must exist"),
])  # fmt: skip
def test_strangers_have_no_mean(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                other: dict[str, object] | None, sentence: str) -> None:
    """One sentence, and nothing written."""
    torch.save({"weight": torch.zeros(2)}, tmp_path / "one.pt")
    if other is not None:
        torch.save(other, tmp_path / "other.pt")
    assert script.main([str(tmp_path / "one.pt"), str(tmp_path / "other.pt"), str(tmp_path / "mean.pt")]) == 1
    assert sentence in capsys.readouterr().err and not (tmp_path / "mean.pt").exists()


def test_one_file_is_no_mean(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A forgotten output would otherwise overwrite weights."""
    torch.save({"weight": torch.ones(2)}, tmp_path / "one.pt")
    assert script.main([str(tmp_path / "one.pt"), str(tmp_path / "two.pt")]) == 1
    assert "two files or more" in capsys.readouterr().err and not (tmp_path / "two.pt").exists()
