"""What is evaluated must be the same stack each time, and the stack of a real microscope."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bundle.evaluation.fields import FocalField, focal_tiles, list_fields, read_field
from bundle.evaluation.recorded import RecordedField
from bundle.optics.camera import Camera
from bundle.training.metrics import psnr


def focal_field(folder: Path, number: int = 0, seed: int = 0) -> FocalField:
    field = list_fields(folder)[number]
    return FocalField(field, read_field(field), 0.8, Camera(), seed)


def test_only_the_split_that_was_asked_for_is_evaluated(fields: Path) -> None:
    """A training field in the test table would be a leak."""
    assert [field.name for field in list_fields(fields)] == ["test/field_0.png", "test/field_1.png"]
    assert len(list_fields(fields, "all")) == 3
    with pytest.raises(ValueError, match=r"split must be all or one of \['test', 'train'\], got val"):
        list_fields(fields, "val")


def test_a_plain_folder_of_images_will_do(fields: Path) -> None:
    """A laboratory has images, not an index."""
    (only,) = list_fields(fields / "train", mpp=0.5)
    assert (only.name, only.slide, only.mpp) == ("field_2.png", "field_2", 0.5)


def test_bad_folders_are_refused_in_one_sentence(fields: Path, tmp_path: Path) -> None:
    """A mistyped folder must not give an empty table."""
    with pytest.raises(FileNotFoundError, match="the fields must be a folder, not found"):
        list_fields(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"must hold index\.json or images"):
        list_fields(tmp_path / "empty")
    (fields / "test" / "field_0.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"names test/field_0\.png, which does not exist"):
        list_fields(fields)


def test_the_crop_is_the_middle_of_the_field(fields: Path) -> None:
    """A crop at the rim would score the reflected border of the simulation."""
    field = list_fields(fields)[0]
    whole, crop = read_field(field), read_field(field, crop_px=50)
    assert torch.equal(crop, whole[:, 23:73, 35:85])
    assert read_field(field, crop_px=100).shape == (3, 96, 100)


def test_fields_of_40x_can_be_seen_as_20x_shows_them(fields: Path) -> None:
    """Weights that were chosen on 40x alone failed at 20x, and no table told."""
    field, halved = list_fields(fields)[0], list_fields(fields, at_20x=True)[0]
    assert (field.mpp, halved.mpp) == (0.25, 0.5)
    whole, half = read_field(field), read_field(halved)
    assert half.shape == (3, 48, 60)
    means = whole.unflatten(2, (60, 2)).unflatten(1, (48, 2)).mean((2, 4))
    assert torch.allclose(half, means, atol=0.51 / 255)
    assert torch.equal(read_field(halved, crop_px=32), half[:, 8:40, 14:46])
    coarse = list_fields(fields / "train", mpp=0.5, at_20x=True)[0]
    assert (coarse.mpp, coarse.halved) == (0.5, False)


def test_a_field_gives_the_same_planes_in_every_run_and_no_two_fields_share_noise(fields: Path) -> None:
    """Figures that change from run to run cannot be repeated by a reader."""
    first = focal_field(fields).plane(1.6)
    focal_field(fields).plane(-4.8)
    assert torch.equal(first, focal_field(fields).plane(1.6))
    assert not torch.equal(first, focal_field(fields, seed=1).plane(1.6))
    plain = list_fields(fields / "test")[0]
    assert torch.equal(first, FocalField(plain, read_field(plain), 0.8, Camera(), 0).plane(1.6))


def test_planes_lose_detail_with_distance_on_uneven_tissue(fields: Path) -> None:
    """The table is read against defocus: the label of a plane has to mean something."""
    field = focal_field(fields)
    assert field.relief_um.abs().max().item() == pytest.approx(0.8, abs=1e-4)
    figures = [psnr(field.plane(position)[None], field.sharp[None]).item() for position in (0.0, 1.6, 4.8)]
    assert figures[0] > figures[1] + 3 > figures[2] + 3
    torch.testing.assert_close(field.defocus_um(1.6), 1.6 - field.relief_um)


def test_planes_of_a_field_have_names_under_which_other_methods_keep_theirs(fields: Path) -> None:
    """Two fields or planes of one name would be scored by each other's images."""
    field = focal_field(fields)
    assert [field.plane_name(position) for position in (-1.6, 0.0, 0.8)] == [
        "plane_-1.60um", "plane_+0.00um", "plane_+0.80um"]
    assert [one.folder for one in list_fields(fields)] == ["test__field_0", "test__field_1"]


def test_tiles_are_cut_row_by_row_and_have_the_planes_of_the_protocol(fields: Path) -> None:
    """Two measurements on every seventh tile must mean the same tiles."""
    first, second = list_fields(fields)  # 96 x 120 and 80 x 100 px
    tiles = focal_tiles([first, second], 40)
    assert len(tiles) == 2 * 3 + 2 * 2
    assert torch.equal(tiles[4].sharp, read_field(first)[:, 40:80, 40:80])
    assert [tile.field.name for tile in focal_tiles([first, second], 40, every=6)] == [first.name, second.name]
    by_hand = FocalField(first, read_field(first)[:, :40, :40], 0.8, Camera(jpeg_quality=90), 0)
    assert torch.equal(tiles[0].plane(1.6), by_hand.plane(1.6))
    with pytest.raises(ValueError, match="one of the fields must be 100 px or more in height and width"):
        focal_tiles([first, second], 100)
    recorded = RecordedField("scan", first.path, "scan", 0.25, first.path, {})
    with pytest.raises(ValueError, match="scan is a recorded one"):
        focal_tiles([recorded], 40)
