"""Random patches of recorded stacks: the right pixels under the right labels, whoever draws them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from monai.transforms import Compose, EnsureTyped, RandFlipd, RandRotate90d
from skimage.color import rgb2lab
from torch import Tensor

from bundle.data.datalist import plane_records
from bundle.data.patches import SeededPatches, patch_loader
from bundle.data.recorded_patches import RandStainPaird, ReadRandPatchd, median_depth_um
from bundle.optics.contrast import contrast_value
from tests.data.dataset_files import write_dataset

PAIR = ["image", "label"]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Six planes: two slides of one field, four overlapping patches each."""
    return plane_records(write_dataset(tmp_path_factory.mktemp("set") / "dataset"), "training")


def patches(records: list[dict[str, Any]], size_px: int, seed: int = 3) -> SeededPatches:
    steps = [ReadRandPatchd(size_px), RandFlipd(PAIR, prob=0.5, spatial_axis=0), RandRotate90d(PAIR, prob=0.75),
             RandStainPaird(PAIR, prob=0.5), EnsureTyped(PAIR, track_meta=False)]
    return SeededPatches(records, Compose(steps), length=5, seed=seed)


def drawn(record: dict[str, Any], size_px: int, seed: int) -> dict[Any, Any]:
    transform = ReadRandPatchd(size_px)
    transform.set_random_state(seed)
    return transform(record)


def pixels(path: str) -> Tensor:
    return torch.from_numpy(tifffile.imread(path)).permute(2, 0, 1)


def place_of(patch: Tensor, whole: Tensor) -> tuple[int, int]:
    """Where a patch lies in its plane, by its own pixels."""
    size = patch.shape[-1]
    windows = whole.unfold(1, size, 1).unfold(2, size, 1)  # (3, rows, cols, size, size)
    same = (windows[..., 0, :] == patch[:, None, None, 0]).all(-1).all(0)
    rows, cols = torch.nonzero(same, as_tuple=True)
    assert len(rows) == 1
    return int(rows[0]), int(cols[0])


@pytest.mark.parametrize("plane", [0, 2])
def test_a_whole_patch_has_the_labels_of_the_datalist(records: list[dict[str, Any]], plane: int) -> None:
    """Distance and contrast of another patch teach the estimator noise."""
    record = records[plane]
    patch = drawn(record, 256, seed=1)
    place = record["location"].index(list(place_of(patch["image"], pixels(record["image"]))))
    assert place_of(patch["label"], pixels(record["label"])) == tuple(record["location"][place])
    assert (patch["defocus_um"], patch["contrast"]) == (record["defocus_um"][place], record["contrast"][place])


@pytest.mark.parametrize(("plane", "seed"), [(0, 1), (2, 5)])
def test_a_part_of_a_patch_has_its_own_labels(records: list[dict[str, Any]], plane: int, seed: int) -> None:
    """The compact preset trains on 128 px: tissue tilts, and a corner of a patch is not as far off as its middle."""
    record = records[plane]
    patch = drawn(record, 64, seed)
    row, col = place_of(patch["image"], pixels(record["image"]))
    assert place_of(patch["label"], pixels(record["label"])) == (row, col)
    depth = tifffile.imread(record["depth"])[row:row + 64, col:col + 64]
    assert patch["defocus_um"] == pytest.approx(record["position_um"] - np.median(depth), abs=1e-6)
    own = contrast_value(patch["image"][None] / 255, patch["label"][None] / 255, 0.25)
    assert patch["contrast"] == pytest.approx(float(own), abs=1e-6)
    assert 0 < patch["contrast"] < 0.9


def test_labels_that_are_measured_again_agree_with_those_of_the_datalist(records: list[dict[str, Any]]) -> None:
    """Two rules for one label would make patches of 256 px and of 128 px two different tasks."""
    for record in records[:3]:
        for (row, col), defocus_um in zip(record["location"], record["defocus_um"], strict=True):
            again = record["position_um"] - median_depth_um(record["depth"], row, col, 256)
            assert again == pytest.approx(defocus_um, abs=1e-4)


def test_patches_larger_than_those_of_the_dataset_are_refused(records: list[dict[str, Any]]) -> None:
    """Pixels outside of a kept patch were left out for a reason: no tissue, or no focus in the stack."""
    with pytest.raises(ValueError, match="patch_px must be at most the 256 px of the dataset's patches, got 320"):
        drawn(records[0], 320, 0)


def test_plane_and_target_stay_on_each_other(records: list[dict[str, Any]]) -> None:
    """A pair that is flipped or turned apart teaches the network to mirror tissue."""
    data = patches([record for record in records if record["plane"] == 1], 96)  # in focus: plane and target are equal
    data.length = 12
    for patch in (data[index] for index in range(12)):
        assert torch.equal(patch["image"], patch["label"])


def test_stain_augmentation_keeps_the_contrast_of_a_pair(records: list[dict[str, Any]]) -> None:
    """Stretched apart, a defocused plane would get back in colour what it lost in detail."""
    pair = drawn(records[0], 256, 2)
    moved = RandStainPaird(PAIR, prob=1.0, deviations=((18.0, 1.0), (8.0, 1.0), (9.0, 1.0)), strength=0.0)(pair)
    before, after = ([rgb2lab(one[key].permute(1, 2, 0).numpy())[..., 0].std() for key in PAIR]
                     for one in (pair, moved))
    assert abs(after[1] / before[1] - 1) > 0.05  # something was stretched
    assert after[0] / after[1] == pytest.approx(before[0] / before[1], abs=0.01)


def test_patches_are_the_same_for_any_number_of_workers_and_after_a_restart(records: list[dict[str, Any]]) -> None:
    """A killed training must go on with the patches of the unbroken one."""
    alone, shared = (list(patch_loader(patches(records, 48), 2, workers=workers)) for workers in (0, 2))
    assert [set(batch) for batch in alone] == [{*PAIR, "defocus_um", "contrast", "mpp", "file", "seed"}] * 3
    for one, other in zip(alone, shared, strict=True):
        assert one["file"] == other["file"]
        for key in (*PAIR, "defocus_um", "contrast", "seed"):
            assert torch.equal(torch.as_tensor(one[key]), torch.as_tensor(other[key])), key
    data = patches(records, 48)
    data.set_epoch(1)
    assert not torch.equal(data[0]["image"], alone[0]["image"][0])


def test_every_patch_of_every_plane_is_drawn_as_often(records: list[dict[str, Any]]) -> None:
    """A field with few patches, whose rest is glass, must not be seen as often as a full one."""
    fewer = {**records[0], "location": records[0]["location"][:1]}
    assert patches([fewer, records[1]], 48).share.tolist() == pytest.approx([1 / 5, 4 / 5])


@pytest.mark.parametrize(("key", "message"), [
    ("image", r"plane_00\.tif (is truncated|cannot be)"), ("depth", r"the depth map .*depth_um\.tif cannot be read")])
def test_a_file_that_was_cut_off_is_named(tmp_path: Path, key: str, message: str) -> None:
    """A dataset is copied over networks; the file to copy again must be told, not a decoder's error."""
    (record, *_) = plane_records(write_dataset(tmp_path), "testing")
    whole = Path(record[key]).read_bytes()
    Path(record[key]).write_bytes(whole[:len(whole) // 2])
    with pytest.raises(ValueError, match=message) as told:
        drawn(record, 64, 0)
    assert "\n" not in str(told.value)
