"""Small sharp fields and restorers whose figures are known beforehand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from bundle.conventions import to_uint8
from bundle.evaluation.baselines import blind_richardson_lucy, unsharp_mask
from bundle.evaluation.fields import list_fields
from bundle.evaluation.protocol import Evaluation
from bundle.optics.camera import smoothed


class Returns:
    """A restorer that returns what a function makes of the plane, and counts how often it was asked."""

    def __init__(self, coarse: object, restored: object, weights_sha256: str = "a" * 64) -> None:
        self.stages, self.weights_sha256 = {"coarse": coarse, "restored": restored}, weights_sha256
        self.settings: Mapping[str, object] = {"tile_px": 256}
        self.device = torch.device("cpu")
        self.seen: list[Tensor] = []

    def restore(self, image: Tensor) -> dict[str, Tensor]:
        self.seen.append(image.clone())
        return {name: stage(image) for name, stage in self.stages.items()}  # type: ignore[operator]

    def estimate(self, tiles: Tensor) -> tuple[Tensor, Tensor] | None:
        return torch.full((len(tiles),), 0.8), torch.full((len(tiles),), 0.5)

    def prompt_errors(self, blurred: Tensor, sharp: Tensor) -> tuple[Tensor, Tensor] | None:
        error = (blurred - sharp).square().mean((1, 2, 3))
        return error, error / 4


@pytest.fixture
def returns() -> type[Returns]:
    """The class, since tests cannot import a conftest."""
    return Returns


@pytest.fixture
def fields(tmp_path: Path) -> Path:
    """Two test fields of different size and one training field, with an index."""
    folder = tmp_path / "fields"
    entries = []
    for number, (split, height, width) in enumerate([("test", 96, 120), ("test", 80, 100), ("train", 64, 64)]):
        generator = torch.Generator().manual_seed(number)
        image = smoothed(torch.rand(3, height, width, generator=generator), 1.2)
        image = ((image - 0.5) * 2.5 + 0.6).clamp(0, 1)
        path = folder / split / f"field_{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(to_uint8(image).permute(1, 2, 0).numpy()).save(path)
        entry = {"file": f"{split}/{path.name}", "split": split, "slide": f"slide-{number}", "mpp": 0.25}
        entries.append(entry)
    (folder / "index.json").write_text(json.dumps(entries), encoding="utf-8")
    return folder


@pytest.fixture
def evaluate(fields: Path, tmp_path: Path) -> object:
    """An evaluation of the two test fields at three planes."""

    def build(restorer: Returns, **options: object) -> Evaluation:
        baselines = {"unsharp": partial(unsharp_mask, amount=0.5), "richardson_lucy": blind_richardson_lucy}
        settings: dict[str, object] = {"positions_um": [-1.6, 0.0, 0.8], "output_dir": tmp_path / "evaluation"}
        return Evaluation(list_fields(fields), restorer, baselines, **settings | options)  # type: ignore[arg-type]

    return build
