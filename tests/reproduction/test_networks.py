"""Networks of a library behind the P-former's interface."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from bundle.reproduction.networks import LibraryNetwork

ROOT = Path(__file__).resolve().parent.parent.parent


class Doubled(nn.Module):
    """An architecture of a library."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.factor * image


def test_it_is_shown_the_image_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that saw our prompts would not be the method that its name says."""
    module = ModuleType("spandrel.architectures.Doubled")
    module.Doubled = Doubled  # type: ignore[attr-defined]
    for name in ("spandrel", "spandrel.architectures"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    network = LibraryNetwork("Doubled", 8, {"factor": 2.0})
    image, prompt = torch.rand(1, 3, 8, 16), torch.full((1, 4, 5), torch.nan)
    assert torch.equal(network(image, prompt), 2 * image)
    assert network.stride == 8 and list(network.state_dict()) == ["network.factor"]


def test_a_library_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no requirement, so most machines lack it."""
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(ValueError, match="Uformer needs the package spandrel and a torchvision that fits torch"):
        LibraryNetwork("Uformer", 128, {})


@pytest.mark.usefixtures("torchvision_schemas")
@pytest.mark.parametrize(("overlay", "parameters"), [
    ("table1_uformer", 50_880_946), ("table2_swinir", 11_504_163), ("table1_grl", 19_805_263)])  # fmt: skip
def test_rows_of_the_library_have_the_published_size(overlay: str, parameters: int) -> None:
    """Another size is another method; runs where spandrel is installed."""
    pytest.importorskip("spandrel")
    config = json.loads((ROOT / "configs" / "ablations" / f"{overlay}.json").read_text())["p_former"]
    network = LibraryNetwork(config["name"], config["stride"], config["arguments"] | {"img_size": 128})
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    with torch.no_grad():
        assert network(torch.rand(1, 3, 128, 128), torch.zeros(1, 1, 1)).shape == (1, 3, 128, 128)
