"""Cells, regions and files of the trust map."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from bundle.slides.grid import Box
from bundle.trust.cells import CellStore
from bundle.trust.map import TrustMap, trust_files, write_trust


@pytest.mark.parametrize("on_disk", [False, True])
def test_cells_are_the_means_of_the_pixels_wherever_blocks_end(tmp_path: Path, on_disk: bool) -> None:
    """Blocks at the right and the bottom end within a cell: its mean is that of the pixels that are there."""
    pixels = torch.rand(2, 150, 230, generator=torch.Generator().manual_seed(1))
    folder = tmp_path / "trust" if on_disk else None
    store = CellStore((150, 230), 32, 2, folder)
    for row in (96, 0):
        for col in (0, 96, 192):
            block = Box(row, col, 96, 96).overlap(Box(0, 0, 150, 230))
            store.put(block, pixels[:, block.row : block.bottom, block.col : block.right])
    # A process that goes on reads what the killed one has kept.
    cells = (CellStore((150, 230), 32, 2, folder) if on_disk else store).whole()
    assert cells.shape == (2, 5, 8)
    np.testing.assert_allclose(cells[1, 1, 2], pixels[1, 32:64, 64:96].mean(), rtol=1e-5)
    np.testing.assert_allclose(cells[0, 4, 7], pixels[0, 128:150, 224:230].mean(), rtol=1e-5)


@pytest.fixture
def trust() -> TrustMap:
    """An L of three cells and one far cell that is cut by the border, above a limit of 10."""
    doubt = np.full((3, 5), 4, np.float32)
    doubt[0, 1] = doubt[1, 1] = doubt[1, 2] = 20
    doubt[2, 4] = 12
    signs = np.stack([doubt, 0.5 * doubt, 0 * doubt])
    return TrustMap(signs, doubt, (doubt > 10).astype(np.float32), 64, (150, 300), 10.0, True, "coarse")


def test_regions_above_the_limit_are_found_with_their_place(trust: TrustMap) -> None:
    """The list is what a pathologist looks at first."""
    large, small = trust.regions()
    assert large.box == Box(0, 64, 128, 128) and large.cells == 3 and large.doubt == 20
    assert small.box == Box(128, 256, 22, 44) and small.signs == {"reblur": 12, "spread": 6, "edges": 0}


def test_the_files_say_the_same_as_the_map(trust: TrustMap, tmp_path: Path) -> None:
    """QuPath draws what the GeoJSON says, on the slide's own pixels."""
    files = trust_files(tmp_path / "restored.ome.tiff")
    assert [path.name for path in files] == ["restored_trust.tif", "restored_trust.geojson"]
    write_trust(trust, 0.25, files, overwrite=False)
    layers = tifffile.imread(files[0])
    np.testing.assert_array_equal(layers[3], trust.doubt)
    with tifffile.TiffFile(files[0]) as file:
        assert file.pages[0].tags["XResolution"].value[0] / file.pages[0].tags["XResolution"].value[1] == 1e4 / 16
    held = json.loads(files[1].read_text())
    assert held["type"] == "FeatureCollection" and len(held["features"]) == 2
    first = held["features"][0]
    assert first["properties"]["objectType"] == "annotation"
    assert first["properties"]["classification"]["name"] == "Untrusted, coarse's pixels"
    assert first["properties"]["measurements"]["doubt, grey levels"] == 20
    (ring,) = first["geometry"]["coordinates"]
    assert sorted(map(tuple, ring[:-1])) == [(64, 0), (64, 128), (128, 0), (128, 64), (192, 64), (192, 128)]
    with pytest.raises(FileExistsError):
        write_trust(trust, 0.25, files, overwrite=False)
