"""Random patches and the transforms of our own."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from monai.transforms import Compose, RandFlipd

from bundle.data.patches import SeededPatches, patch_loader
from bundle.data.transforms import RandCropAtMagnificationd

FIELDS = [{"label": torch.randint(0, 255, (3, 90, 120), dtype=torch.uint8), "mpp": 0.25, "slide": "a"},
          {"label": torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8), "mpp": 0.5, "slide": "b"}]


def dataset(**options: object) -> SeededPatches:
    transform = Compose([RandCropAtMagnificationd("label", size_px=32, halve_share=0.5), RandFlipd("label", prob=0.5)])
    return SeededPatches(FIELDS, transform, length=20, **options)  # type: ignore[arg-type]


def test_a_patch_is_a_function_of_seed_epoch_and_index() -> None:
    """A killed run must go on with the patches that it would have drawn, in any order, in any process."""
    first, second = dataset(seed=3), dataset(seed=3)
    for data in (first, second):
        data.set_epoch(4)
    expected = [first[i] for i in range(6)]
    for i in (5, 0, 3):
        again = second[i]
        assert torch.equal(again["label"], expected[i]["label"]) and again["seed"] == expected[i]["seed"]
    second.set_epoch(5)
    assert second[0]["seed"] != expected[0]["seed"]
    assert dataset(seed=4)[0]["seed"] != dataset(seed=3)[0]["seed"]


def test_a_validation_set_is_the_same_every_epoch() -> None:
    """Metrics of two epochs are comparable only on the same patches."""
    data = dataset(repeat=True)
    before = data[2]["seed"]
    data.set_epoch(9)
    assert data[2]["seed"] == before


def test_a_patch_that_is_kept_is_not_drawn_again() -> None:
    """Stage 1b sees its patches in 160 epochs: drawing them each time took 20 times as long as the training."""
    kept: set[int] = set()
    data = dataset(repeat=True, kept=kept)
    first = data[3]
    kept.add(first["seed"])
    assert data[3] == {"seed": first["seed"]} and "label" in data[2]


def test_large_fields_are_drawn_more_often() -> None:
    """Otherwise tissue of small fields would be seen many times as often."""
    drawn = [record["slide"] for record in (dataset()[i] for i in range(300))]
    assert 0.62 < drawn.count("a") / 300 < 0.82  # 10,800 of 14,896 px


def test_40x_is_at_times_shown_as_20x_and_20x_never_as_10x() -> None:
    """mpp must follow the pixels: it decides which objective defocuses the patch."""
    crop = RandCropAtMagnificationd("label", size_px=32, halve_share=1.0)
    fine, coarse = crop(FIELDS[0]), crop(FIELDS[1])
    assert fine["mpp"] == 0.5 and coarse["mpp"] == 0.5
    assert fine["label"].shape == coarse["label"].shape == (3, 32, 32) and fine["label"].dtype == torch.uint8


def test_shrunk_crops_show_more_tissue_at_the_same_scale_and_size() -> None:
    """Fine tissue that counted as another magnification would be defocused by the wrong objective."""
    ramp = torch.arange(120, dtype=torch.uint8).expand(3, 90, 120).contiguous()  # one level a pixel
    crop = RandCropAtMagnificationd("label", size_px=32, halve_share=0.0, shrink_share=1.0)
    crop.set_random_state(0)
    drawn = [crop({"label": ramp, "mpp": 0.25}) for _ in range(40)]
    assert all(record["mpp"] == 0.25 and record["label"].shape == (3, 32, 32) for record in drawn)
    steps = [float(record["label"][0, 5].float().diff().mean()) for record in drawn]
    assert 1.0 <= min(steps) < 1.25 and 1.75 < max(steps) <= 2.05


def test_enlarged_crops_show_softer_tissue_at_the_same_scale_and_size() -> None:
    """Who has only seen crisp truths takes a soft sharp field for a blurred one, and sharpens it."""
    ramp = torch.arange(120, dtype=torch.uint8).expand(3, 90, 120).contiguous()  # one level a pixel
    crop = RandCropAtMagnificationd("label", size_px=32, halve_share=0.0, shrink_share=0.3, enlarge_share=0.4)
    crop.set_random_state(0)
    drawn = [crop({"label": ramp, "mpp": 0.25}) for _ in range(200)]
    assert all(record["mpp"] == 0.25 and record["label"].shape == (3, 32, 32) for record in drawn)
    steps = [float(record["label"][0, 5].float().diff()[4:-4].mean()) for record in drawn]
    enlarged, shrunk = sum(step < 0.97 for step in steps), sum(step > 1.03 for step in steps)
    assert 0.45 < min(steps) < 0.6 and 60 < enlarged < 100 and 40 < shrunk < 80
    halved = RandCropAtMagnificationd("label", size_px=32, halve_share=1.0, enlarge_share=1.0)(FIELDS[0])
    assert halved["mpp"] == 0.5
    with pytest.raises(ValueError, match=r"at most 1 together, got 0\.7 and 0\.4"):
        RandCropAtMagnificationd("label", size_px=32, shrink_share=0.7, enlarge_share=0.4)


def test_a_field_smaller_than_the_crop_is_refused() -> None:
    """Padding would show the networks invented tissue."""
    with pytest.raises(ValueError, match="at least 100 px a side to be cropped, got 90"):
        RandCropAtMagnificationd("label", size_px=100)(FIELDS[0])


def test_no_fields_are_refused() -> None:
    """An empty list would train on nothing for hours."""
    with pytest.raises(ValueError, match="at least one field"):
        SeededPatches([], Compose([]), 4)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_share_the_batches_of_one(world_size: int) -> None:
    """Otherwise a training on two GPUs is another training, with other patches in a step."""
    loaders = [patch_loader(dataset(), 6, rank, world_size) for rank in range(world_size)]
    alone = [batch["seed"].tolist() for batch in patch_loader(dataset(), 6)]
    shared = [[batch["seed"].tolist() for batch in loader] for loader in loaders]
    for expected, *shares in list(zip(alone, *shared))[:3]:  # the fourth batch is a rest of 2
        assert sorted(expected) == sorted(chain(*shares))
    assert sorted(chain(*alone)) == sorted(chain(*chain(*shared)))


def test_a_batch_that_processes_cannot_share_is_refused() -> None:
    """A batch rounded down would be another learning rate in disguise."""
    with pytest.raises(ValueError, match="shared equally by 4 processes, got a batch of 6"):
        patch_loader(dataset(), 6, 0, 4)
