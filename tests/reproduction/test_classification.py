"""Table 3 on tiles whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from bundle.reproduction.classification import (
    FOLDS,
    LabelledTile,
    Recipe,
    classify,
    folds_of,
    load_tiles,
    read_labels,
    tile_scores,
    train_classifier,
)


def written(folder: Path, text: str) -> Path:
    (folder / "labels.csv").write_text(text, encoding="utf-8")
    return folder / "labels.csv"


def nuclei(count: int = 20) -> tuple[list[LabelledTile], Tensor]:
    """Tiles of noise with a dark disc: large where abnormal."""
    random = np.random.default_rng(0)
    rows, cols = np.mgrid[:40, :48]
    tiles, images = [], []
    for number in range(count):
        label = int(number % 3 == 0)
        image = random.integers(170, 220, (40, 48, 3))
        image[np.hypot(rows - 20, cols - 24) < (16 if label else 5)] //= 4
        tiles.append(LabelledTile(f"{number}", label, None))
        images.append(torch.from_numpy(image.astype(np.uint8)).permute(2, 0, 1))
    return tiles, torch.stack(images)


def test_the_published_list_and_one_with_slides_are_read(tmp_path: Path) -> None:
    """The published annotations have a head name,label, and come from a spreadsheet with a mark at the front."""
    lines = "\n".join(f"t{number}.png,{number % 2}" for number in range(12))
    assert read_labels(written(tmp_path, f"\ufeffname,label\n{lines}\n"))[1] == LabelledTile("t1.png", 1, None)
    lines = "\n".join(f"{number},{number % 2},s{number % 6}" for number in range(12))
    assert read_labels(written(tmp_path, f"name,label,slide\n{lines}\n"))[7] == LabelledTile("7", 1, "s1")


@pytest.mark.parametrize(("text", "message"), [
    ("file,class\na,0\n", "must be lines under a head name,label, .* has file,class"),
    ("", "under a head name,label, .* has nothing"),
    ("name,label\na,0\nb,yes\n", "a label must be 0 or 1, .* has yes for b"),
    ("name,label\na,0\na,1\n", "a tile may be listed once, .* has a more than once"),
    ("name,label\na,0\nb,1\n", "a split needs 5 tiles of each label, .* has 1 of one"),
    ("name,label,split\n" + "".join(f"{k},{k % 2},{'train' if k < 12 else 'test'}\n" for k in range(20)),
     "a split needs 5 tiles of each label, .* has 4 of one"),
    ("name,label,slide,split\n" + "".join(f"{k},{k % 2},s{k % 23},{'train' if k < 12 else 'val'}\n" for k in range(24)),
     "a slide must lie in one split, .* has s0 in train and elsewhere"),
])
def test_a_list_that_cannot_be_used_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """A label read wrongly is a diagnosis scored wrongly."""
    with pytest.raises(ValueError, match=message):
        read_labels(written(tmp_path, text))


def test_tiles_are_found_by_name_and_refused_when_missing_or_uneven(tmp_path: Path) -> None:
    """Some methods drop the suffix, some change it; a missing tile must not shift the labels of the others."""
    tiles, images = nuclei(2)
    for tile, image, suffix in zip(tiles, images, (".png", ".tif"), strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{tile.name}{suffix}")
    assert torch.equal(load_tiles(tiles, tmp_path), images)
    with pytest.raises(FileNotFoundError, match=r"every tile of the list must be there, .* lacks 9"):
        load_tiles([*tiles, LabelledTile("9", 0, None)], tmp_path)
    Image.new("RGB", (50, 40)).save(tmp_path / "9.png")
    with pytest.raises(ValueError, match=r"tiles must have one size, 9 in .* has \(40, 50\) px and 0 \(40, 48\)"):
        load_tiles([*tiles, LabelledTile("9", 0, None)], tmp_path)


def test_every_tile_is_held_out_once_and_slides_are_not_torn_apart() -> None:
    """A tile beside one of the same slide in training is half known."""
    tiles = [LabelledTile(f"{number}", number % 2, f"s{number % 7}") for number in range(70)]
    folds = folds_of(tiles)
    assert sorted(np.concatenate(folds)) == list(range(70)) and len(folds) == FOLDS
    for fold in folds:
        inside = {tiles[index].slide for index in fold}
        assert not inside & {tiles[index].slide for index in set(range(70)) - set(fold)}
    with pytest.raises(ValueError, match="5 folds need 5 slides, the list has 2"):
        folds_of([tile._replace(slide=f"s{place % 2}") for place, tile in enumerate(tiles)])


def test_the_four_figures_are_those_of_a_table_by_hand() -> None:
    """Precision and specificity are easily taken for each other."""
    labels = torch.tensor([1, 1, 1, 0, 0, 0, 0])
    scores = tile_scores(labels, torch.tensor([0.9, 0.8, 0.2, 0.6, 0.1, 0.3, 0.1]))
    assert scores == pytest.approx((10 / 12, 5 / 7, 2 / 3, 3 / 4))


def test_what_is_lost_in_a_tile_is_seen_in_its_score_and_a_killed_call_goes_on(tmp_path: Path) -> None:
    """Sharp tiles are told apart, tiles without their nuclei are not: that is all that table 3 measures."""
    tiles, sharp = nuclei()
    def network() -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1))

    recipe = Recipe(60, network, 0.05)
    lost = torch.full_like(sharp, 190)
    first = classify(tiles, sharp, {"lost": lost, "same": sharp}, recipe, tmp_path, torch.device("cpu"))
    assert first["sharp"].auc == 1 and first["same"] == first["sharp"]
    assert first["lost"].auc < 0.8
    networks = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(networks) == FOLDS
    next(iter(networks)).unlink()
    assert classify(tiles, sharp, {"lost": lost, "same": sharp}, recipe, tmp_path, torch.device("cpu")) == first
    assert sum(path.stat().st_mtime_ns != networks[path] for path in networks) == 1


def test_tiles_of_the_split_train_teach_and_are_not_asked_about(tmp_path: Path) -> None:
    """A method is asked about fields that it never saw; those that it learned from may still teach the classifier."""
    tiles, sharp = nuclei(30)
    split = [tile._replace(teaches=place >= 12) for place, tile in enumerate(tiles)]
    recipe = Recipe(60, lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1)), 0.05)
    upside_down = sharp[:12].clone()
    upside_down[0], upside_down[1] = sharp[1], sharp[0]  # an abnormal and a normal tile change places
    scores = classify(split, sharp, {"same": sharp[:12], "wrong": upside_down}, recipe, tmp_path, torch.device("cpu"))
    assert len(list(tmp_path.iterdir())) == 1
    assert scores["sharp"].auc == 1 and scores["same"] == scores["sharp"]
    assert scores["wrong"].auc <= 31 / 32  # of 4 x 8 pairs at least one is the wrong way round


def test_the_classifier_of_the_table_is_trained_from_its_seed_alone() -> None:
    """Two runs of one line must print one table, whatever was drawn before."""
    tiles, sharp = nuclei(16)
    labels = torch.tensor([tile.label for tile in tiles])
    outputs = []
    for _ in range(2):
        torch.rand(3)
        network = train_classifier(sharp, labels, Recipe(1), 4, torch.device("cpu"))
        outputs.append(network(sharp[:2].float() / 255).detach())
    assert outputs[0].shape == (2, 1) and torch.equal(*outputs)
