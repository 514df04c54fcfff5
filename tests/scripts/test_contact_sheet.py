"""The contact sheet shows what was scored."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bundle.conventions import to_uint8
from bundle.evaluation.fields import FocalField, list_fields, read_field
from bundle.optics.camera import Camera, smoothed


class Negative:
    """Coarse is the plane, restored its negative."""

    device = torch.device("cpu")

    def restore(self, image: Tensor) -> dict[str, Tensor]:
        return {"coarse": image, "restored": 1 - image}


def test_a_sheet_holds_input_coarse_restored_and_truth_side_by_side(script: ModuleType, tmp_path: Path) -> None:
    """A swapped column would show the truth as our result."""
    sharp = ((smoothed(torch.rand(3, 40, 48), 1.2) - 0.5) * 2.5 + 0.6).clamp(0, 1)
    Image.fromarray(to_uint8(sharp).permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    (field,) = list_fields(tmp_path)
    focal = FocalField(field, read_field(field), 0.5, Camera(), seed=0)
    sheet = np.asarray(script.draw_sheet(focal, Negative(), [0.0, 1.6]))
    plane = script.pixels_of(focal.plane(1.6))
    top = script.TEXT_PX + script.GAP_PX + (40 + script.TEXT_PX + script.GAP_PX)
    columns = [sheet[top : top + 40, left : left + 48] for left in (script.LABEL_PX + 54 * i for i in range(4))]
    assert np.array_equal(columns[0], plane)
    assert np.array_equal(columns[1], plane)
    assert np.abs(columns[2].astype(int) - (255 - plane)).max() <= 1
    assert np.array_equal(columns[3], script.pixels_of(focal.sharp))


def test_missing_weights_end_in_one_sentence(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A traceback of the config's parser says nothing to a person."""
    assert script.main([str(tmp_path), "--weights", str(tmp_path / "absent.pt")]) == 1
    message = capsys.readouterr().err
    assert "absent.pt" in message
    assert message.count("\n") == 1
