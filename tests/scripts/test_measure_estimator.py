"""The measure of the estimator in stains that it has not seen."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from bundle.conventions import plane_positions_um
from bundle.evaluation.fields import focal_tiles, list_fields
from bundle.prompts.defocus import DefocusEstimate


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One sharp field of 256 px."""
    path = tmp_path_factory.mktemp("fields")
    pixels = np.random.default_rng(0).integers(60, 250, (256, 256, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path / "field.png")
    return path


class ReadsHalf(torch.nn.Module):
    """Knows the planes in their order, and says half of each distance."""

    def __init__(self, true_um: list[float]) -> None:
        super().__init__()
        self.left = list(true_um)

    def forward(self, image: torch.Tensor) -> DefocusEstimate:
        return DefocusEstimate(image, torch.tensor([self.left.pop(0) / 2]), torch.full((1,), 0.25))


def test_every_plane_is_read_beside_its_own_truth(script: ModuleType, folder: Path) -> None:
    """The tissue is uneven: the truth of a tile is the median of its distances, not the stage's position."""
    tiles = focal_tiles(list_fields(folder, "all"), 256)
    true_um = [float(tiles[0].defocus_um(position).median()) for position in plane_positions_um().tolist()]
    figures = script.read(ReadsHalf(true_um), tiles)
    assert figures.shape == (4, len(true_um))
    assert torch.allclose(figures[1], torch.tensor(true_um)) and torch.allclose(figures[0], figures[1] / 2)
    assert (figures[2] == 0.25).all()
    assert int(figures[3].argmax()) == 6 and figures[3][[0, -1]].max() < 0.5  # sharpest in the middle plane


def test_a_row_tells_which_way_distances_are_misread(script: ModuleType) -> None:
    """Both sides are read nearer to focus, one plane on the wrong side; 0.5 µm away does not count there."""
    true_um = torch.tensor([-4.0, -2.0, 0.5, 2.0, 4.0])
    read_um = torch.tensor([-3.7, -1.5, -0.1, 1.5, 3.5])
    row = script.row("own", torch.stack([read_um, true_um, torch.ones(5), torch.full((5,), 0.75)]))
    assert row == "| own | 0.48 um | 0.20 | 80% | 0.250 | -0.45 um |"


def test_the_shipped_estimator_is_measured_in_every_tissue(script: ModuleType, folder: Path,
                                                           capsys: pytest.CaptureFixture[str]) -> None:
    """From the command to the table."""
    assert script.main([str(folder), "--split", "all", "--every", "1"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0] == "1 tiles of 13 planes"
    assert [row.split()[1] for row in rows[4:]] == ["own", "grey", "swapped", "mixed", "contrast"]
    assert len({row.split("|", 2)[2] for row in rows[4:]}) == 5


def test_bad_arguments_are_one_sentence(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """A stack tells a user nothing about the folder that was mistyped."""
    assert script.main(["nowhere"]) == 1
    assert capsys.readouterr().err == "measure_estimator.py: the fields must be a folder, not found: nowhere.\n"
    assert script.main(["nowhere", "--every", "0"]) == 1
    assert capsys.readouterr().err == "measure_estimator.py: --every must be 1 or more, got 0.\n"
