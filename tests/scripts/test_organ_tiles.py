"""scripts/organ_tiles.py: a labelled list for table 3 from sharp fields."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from bundle.data.phantom import tissue_phantom
from bundle.reproduction.classification import asked_about, load_tiles, read_labels


def test_a_folder_without_an_index_is_one_sentence(script: ModuleType, tmp_path: Path,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    """And leaves no folder of tiles behind."""
    assert script.main([str(tmp_path), str(tmp_path / "tiles")]) == 1
    told = capsys.readouterr().err
    assert told.startswith("organ_tiles.py: ") and "index.json" in told and told.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_tiles_make_a_list_that_table_3_reads(script: ModuleType, tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    """Sharp and defocused tile of one name must show one place, and no tile from training may be asked about."""
    entries = []
    slides = [("train", "breast"), ("train", "oral mucosa"), ("test", "breast"), ("val", "oral mucosa")] * 3
    for number, (split, organ) in enumerate(slides):
        pixels = tissue_phantom(192, 320, torch.Generator().manual_seed(number)) * 255
        Image.fromarray(pixels.byte().permute(1, 2, 0).numpy()).save(tmp_path / f"{number}.png")
        entries.append({"file": f"{number}.png", "split": split, "organ": organ, "slide": f"s{number}"})
    (tmp_path / "index.json").write_text(json.dumps(entries))
    monkeypatch.setattr(script, "TILES", 2)
    assert script.main([str(tmp_path), str(tmp_path / "tiles")]) == 0
    every = read_labels(tmp_path / "tiles" / "labels.csv")
    load_tiles(every, tmp_path / "tiles" / "sharp")
    listed = asked_about(every)
    assert len(every) == 24 and sorted(tile.label for tile in listed) == [0] * 6 + [1] * 6
    assert {tile.slide for tile in listed} == {f"s{number}" for number in range(12) if number % 4 > 1}
    assert len(list((tmp_path / "tiles" / "low").iterdir())) == 12
    sharp, low = (load_tiles(listed, tmp_path / "tiles" / name).double().numpy() for name in ("sharp", "low"))
    detail = [np.abs(np.diff(tiles, axis=-1)).mean() for tiles in (sharp, low)]
    assert detail[1] < detail[0] / 2
    alike = np.corrcoef([tile.ravel() for tile in (*sharp, *low)])[:len(listed), len(listed):]
    assert (alike.argmax(1) == np.arange(len(listed))).all()
