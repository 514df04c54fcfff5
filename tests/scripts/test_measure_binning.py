"""The measure of who is taken for an oversampling camera."""

from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image
from skimage.data import immunohistochemistry
from torch.nn import functional

from bundle.evaluation.fields import focal_tiles, list_fields


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The colon section, twice."""
    path = tmp_path_factory.mktemp("fields")
    for name in ("a.png", "b.png"):
        Image.fromarray(immunohistochemistry()).save(path / name)
    return path


def test_a_folder_is_one_camera_s(script: ModuleType) -> None:
    """Else it would tell nothing that its images do not tell one by one."""
    first, same, other = (script.one_camera(2.0, seed, 1.0) for seed in (3, 3, 4))
    ranges = ("full_well", "noise_px", "red_blue_noise", "sharpening", "oversampling")
    assert all(getattr(first, name)[0] == getattr(first, name)[1] for name in ranges)
    assert first.full_well == same.full_well != other.full_well
    assert len(first.tables[0]) == 2 and first.jpeg_quality == (0, 0)


def test_images_are_the_middles_of_tiles(script: ModuleType, folder: Path) -> None:
    """Enlarged where the camera oversamples."""
    tiles = focal_tiles(list_fields(folder, "all"), 320)
    sharp = tiles[0].sharp[:, 32:288, 32:288]
    made = [script.folders(tiles, oversampling, 1, 2, 50.0)[0] for oversampling in (1.0, 3.0)]  # near focus
    assert all(image.shape == (3, 256, 256) for images in made for image in images)
    near, far = (float((made[0][0] - image).square().mean()) for image in (sharp, sharp.flip(-1)))
    assert near < far / 2
    steps = [float(functional.avg_pool2d(images[0], 4).diff(dim=-1).abs().mean()) for images in made]
    assert steps[1] < steps[0]


def test_it_is_measured_from_the_command_to_the_table(script: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    """The reader that is shipped."""
    monkeypatch.setattr(script, "OVERSAMPLING", (1.0, 3.0))
    assert script.main([str(folder), "--split", "all", "--count", "2", "--images", "2"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0] == "2 folders of 2 images a row, of 2 tiles"
    shares = [[cell.strip() for cell in row.split("|")[1:5]] for row in rows[4:]]
    (fits, _, together, _), (fine, _, found, detailed) = shares
    assert (fits, together, fine) == ("1", "0%", "3")
    assert int(found.rstrip("%")) <= 100 - int(detailed.rstrip("%"))


def test_bad_arguments_are_one_sentence(script: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A stack tells a user nothing about the folder that was mistyped."""
    assert script.main(["nowhere"]) == 1
    assert capsys.readouterr().err == "measure_binning.py: the fields must be a folder, not found: nowhere.\n"
    assert script.main(["nowhere", "--count", "0"]) == 1
    assert "--count and --images must be 1 or more" in capsys.readouterr().err
    assert script.main([str(folder), "--split", "all"]) == 1
    assert "a folder of 12 images needs as many tiles of one pixel size, got 2" in capsys.readouterr().err
