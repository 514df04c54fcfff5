"""Table 3: does a restored tile keep what a diagnosis needs? A classifier of sharp tiles, asked about restored ones.

    labels     CSV with a head `name,label` (0 or 1), as the published 3DHistech annotations; also `slide` and `split`
    tiles      folders of images, `<name>` with or without its suffix; the sharp ones, and those of each method

Five folds, stratified by label, and by slide where slides are known: a tile is classified by the network that was
trained on the sharp tiles of the other folds, so no tile is asked about that was learned by heart. Where the list has a
`split`, the sharp tiles of `train` teach one network, and all others are asked about. Scores are of these together.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from monai.networks.nets import resnet18
from sklearn.metrics import accuracy_score, precision_score, recall_score, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from torch import Tensor, nn
from torch.nn import functional

from bundle.conventions import from_uint8
from bundle.slides.reader import PICTURE_SUFFIXES, open_image
from bundle.weights import load_weights, save_whole

FOLDS, BATCH = 5, 16
SUFFIXES = ("", *PICTURE_SUFFIXES)


class LabelledTile(NamedTuple):
    """A line of the list."""

    name: str
    label: int  # 1: abnormal
    slide: str | None
    teaches: bool = False  # of the split `train`: never asked about


class TileScores(NamedTuple):
    """Figures of all tiles, 0 to 1; a tile is called abnormal from a probability of one half on."""

    auc: float
    accuracy: float
    precision: float
    specificity: float


def read_labels(path: str | Path) -> list[LabelledTile]:
    """The tiles of a list.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no head `name,label`, another label than 0 or 1, a name twice, too few tiles of a label, or a slide
            that is learned from and asked about.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"the labels must be a CSV file, {path} does not exist.")
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = list(csv.DictReader(file))
    if not lines or not {"name", "label"} <= set(lines[0]):
        head = ",".join(lines[0]) if lines else "nothing"
        raise ValueError(f"labels must be lines under a head name,label, {path} has {head}.")
    wrong = [line for line in lines if line["label"] not in ("0", "1")]
    if wrong:
        raise ValueError(f"a label must be 0 or 1, {path} has {wrong[0]['label']} for {wrong[0]['name']}.")
    tiles = [LabelledTile(line["name"], int(line["label"]), line.get("slide") or None, line.get("split") == "train")
             for line in lines]
    names = [tile.name for tile in tiles]
    if len(set(names)) < len(names):
        raise ValueError(f"a tile may be listed once, {path} has {max(names, key=names.count)} more than once.")
    teaching, asked = [tile for tile in tiles if tile.teaches], asked_about(tiles)
    fewest = min(sum(tile.label == label for tile in side) for side in (teaching, asked) if side for label in (0, 1))
    if fewest < FOLDS:
        raise ValueError(f"a split needs {FOLDS} tiles of each label, {path} has {fewest} of one.")
    torn = {tile.slide for tile in teaching if tile.slide} & {tile.slide for tile in asked}
    if torn:
        raise ValueError(f"a slide must lie in one split, {path} has {min(map(str, torn))} in train and elsewhere.")
    return tiles


def asked_about(tiles: Sequence[LabelledTile]) -> list[LabelledTile]:
    """The tiles that are scored, in the order of the list."""
    return [tile for tile in tiles if not tile.teaches]


def load_tiles(tiles: Sequence[LabelledTile], folder: str | Path) -> Tensor:
    """The tiles of a folder, (N, 3, H, W) uint8, in the order of the list.

    Raises:
        FileNotFoundError: a tile is missing.
        ValueError: tiles differ in size.
    """
    loaded: list[Tensor] = []
    for tile in tiles:
        found = [path for suffix in SUFFIXES if (path := Path(folder) / f"{tile.name}{suffix}").is_file()]
        if not found:
            raise FileNotFoundError(f"every tile of the list must be there, {folder} lacks {tile.name}.")
        with open_image(found[0]) as image:
            loaded.append(torch.from_numpy(image.read(0, 0, *image.shape)).permute(2, 0, 1))
        if loaded[-1].shape != loaded[0].shape:
            raise ValueError(f"tiles must have one size, {tile.name} in {folder} has {tuple(loaded[-1].shape[1:])} px "
                             f"and {tiles[0].name} {tuple(loaded[0].shape[1:])}.")
    return torch.stack(loaded)


def folds_of(tiles: Sequence[LabelledTile], seed: int = 0) -> list[np.ndarray]:
    """Indices of the tiles that each fold holds out; all tiles of a slide lie in one fold; one fold if some teach.

    Raises:
        ValueError: slides are known, but fewer than there are folds.
    """
    labels, slides = [tile.label for tile in tiles], [tile.slide for tile in tiles]
    if any(tile.teaches for tile in tiles):
        return [np.array([place for place, tile in enumerate(tiles) if not tile.teaches])]
    if None in slides:
        chosen = StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(labels, labels)
    else:
        if len(set(slides)) < FOLDS:
            raise ValueError(f"{FOLDS} folds need {FOLDS} slides, the list has {len(set(slides))}.")
        grouped = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
        chosen = grouped.split(labels, labels, slides)
    return [held_out for _, held_out in chosen]


class Recipe(NamedTuple):
    """How a classifier is made."""

    steps: int  # of Adam, batches of 16
    build: Callable[[], nn.Module] = partial(resnet18, spatial_dims=2, n_input_channels=3, num_classes=1,
                                             conv1_t_stride=2)
    learning_rate: float = 3e-4


def train_classifier(tiles: Tensor, labels: Tensor, recipe: Recipe, seed: int, device: torch.device) -> nn.Module:
    """A network on sharp tiles, random turns and flips, both labels of equal weight.

    Args:
        tiles: (N, 3, H, W) uint8.
        labels: (N,), 0 or 1.
        recipe: network and training.
        seed: of weights and batches.
        device: where to train.
    """
    network = _built(recipe, seed).to(device).train()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), recipe.learning_rate)
    weight = (labels == 0).sum() / labels.sum()
    for _ in range(recipe.steps):
        chosen = torch.randint(len(tiles), (BATCH,), generator=generator)
        turns, flip = torch.randint(4, (), generator=generator), torch.randint(2, (), generator=generator)
        batch = torch.rot90(from_uint8(tiles[chosen]), int(turns), (-2, -1))
        batch = (batch.flip(-1) if flip else batch).to(device)
        loss = functional.binary_cross_entropy_with_logits(
            network(batch)[:, 0], labels[chosen].float().to(device), pos_weight=weight.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def classify(tiles: Sequence[LabelledTile], sharp: Tensor, methods: Mapping[str, Tensor], recipe: Recipe, folder: Path,
             device: torch.device, seed: int = 0) -> dict[str, TileScores]:
    """Scores of every method's tiles and, as "sharp", of the sharp ones.

    Args:
        tiles: the list.
        sharp: their sharp images, (N, 3, H, W) uint8.
        methods: those of `asked_about` as each method restored them.
        recipe: network and training, of each fold.
        folder: keeps the networks, `fold_<k>.pt`; a killed call goes on behind the last one.
        device: where to run.
        seed: of folds and training.
    """
    labels = torch.tensor([tile.label for tile in tiles])
    is_asked = np.array([not tile.teaches for tile in tiles])
    asked = {"sharp": sharp[is_asked], **methods}
    place = np.cumsum(is_asked) - 1  # of a tile among those that are asked about
    probabilities = {name: torch.zeros(int(is_asked.sum())) for name in asked}
    made_of = json.dumps([tiles, recipe.steps, recipe.learning_rate, seed])
    key = hashlib.sha256(sharp.numpy().tobytes() + made_of.encode()).hexdigest()[:16]
    for number, held_out in enumerate(folds_of(tiles, seed)):
        path = folder / f"fold_{number}_{key}.pt"
        if not path.is_file():
            learned = np.setdiff1d(np.arange(len(tiles)), held_out)
            network = train_classifier(sharp[learned], labels[learned], recipe, seed + number, device)
            save_whole(network.state_dict(), path)
        network = load_weights(_built(recipe, seed), path).to(device).eval()
        for name, images in asked.items():
            probabilities[name][place[held_out]] = _probability(network, images[place[held_out]], device)
    return {name: tile_scores(labels[is_asked], values) for name, values in probabilities.items()}


def tile_scores(labels: Tensor, probabilities: Tensor) -> TileScores:
    """AUC, accuracy, precision and specificity of probabilities (N,) against labels (N,)."""
    truth, called = labels.numpy(), (probabilities >= 0.5).numpy()
    return TileScores(float(roc_auc_score(truth, probabilities.numpy())), float(accuracy_score(truth, called)),
                      float(precision_score(truth, called, zero_division=0.0)),
                      float(recall_score(truth, called, pos_label=0)))


def _built(recipe: Recipe, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return recipe.build()


@torch.inference_mode()
def _probability(network: nn.Module, tiles: Tensor, device: torch.device) -> Tensor:
    parts = [network(from_uint8(part).to(device))[:, 0].sigmoid().cpu() for part in tiles.split(BATCH)]
    return torch.cat(parts)
