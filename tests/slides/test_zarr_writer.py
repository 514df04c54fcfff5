"""OME-Zarr: the pixels, the levels and the metadata that other readers of the format look for."""

from pathlib import Path

import numpy as np
import pytest
import zarr

from bundle.slides.files import result_of
from bundle.slides.grid import TileGrid
from bundle.slides.pyramid import Record, halved
from bundle.slides.writer import open_sink
from bundle.slides.zarr_writer import metadata_of

SHAPE = (611, 1405)


def tissue() -> np.ndarray:
    return np.random.default_rng(4).integers(0, 256, (*SHAPE, 3)).astype(np.uint8)


def write(path: Path, pixels: np.ndarray, **options: object) -> None:
    record = Record(path.name, 0.25, b"profile", {"warning": "not for primary diagnosis"})
    with open_sink(path, SHAPE, record, block_px=300, **options) as sink:
        for block in TileGrid(*SHAPE).blocks(300):
            sink.write(block.row, block.col, pixels[block.row : block.bottom, block.col : block.right])


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several shards, the last ones cut, in a small picture; three levels."""
    monkeypatch.setattr("bundle.slides.zarr_writer.SHARD_PX", 256)
    monkeypatch.setattr("bundle.slides.zarr_writer.CHUNK_PX", 64)
    monkeypatch.setattr("bundle.slides.pyramid.LAST_LEVEL_PX", 400)


def test_every_level_holds_the_pixels_of_its_place(tmp_path: Path) -> None:
    """A shard in the wrong place is tissue in the wrong place; a level that is off shifts what a viewer measures."""
    pixels, path = tissue(), tmp_path / "a.ome.zarr"
    write(path, pixels)
    group = zarr.open_group(path, mode="r")
    expected = pixels
    for dataset in group.attrs["ome"]["multiscales"][0]["datasets"]:
        np.testing.assert_array_equal(np.moveaxis(group[dataset["path"]][:], 0, 2), expected)
        expected = halved(expected)
    assert sorted(group.keys()) == ["0", "1", "2"]
    assert group["0"].metadata.zarr_format == 3 and group["0"].metadata.dimension_names == ("c", "y", "x")
    assert sorted(found.name for found in tmp_path.iterdir()) == ["a.ome.zarr"]


def test_the_metadata_place_each_level_in_micrometres() -> None:
    """A viewer lays levels over each other by them: half a pixel of level 2 is 0.5 µm."""
    found = metadata_of(Record("a", 0.25, None, {"software": "MoP"}), [SHAPE, (305, 702), (152, 351)])
    image = found["ome"]["multiscales"][0]
    assert found["ome"]["version"] == "0.5" and found["mop"] == {"software": "MoP"}
    assert [axis["name"] for axis in image["axes"]] == ["c", "y", "x"]
    assert [axis.get("unit") for axis in image["axes"]] == [None, "micrometer", "micrometer"]
    scale, shift = image["datasets"][2]["coordinateTransformations"]
    assert scale == {"type": "scale", "scale": [1.0, 1.0, 1.0]}
    # Level 2 averages 4 px of 0.25 µm, whose centres lie at 0, 0.25, 0.5 and 0.75 µm.
    assert shift == {"type": "translation", "translation": [0.0, 0.375, 0.375]}


def test_nothing_half_written_stays_and_no_strangers_folder_is_replaced(tmp_path: Path, monkeypatch) -> None:
    """The result is a folder: an older one, or somebody else's, must survive whatever happens."""
    pixels, path = tissue(), tmp_path / "out" / "a.ome.zarr"
    with monkeypatch.context() as patch:
        patch.setattr("bundle.slides.zarr_writer._halved_from", lambda *_: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            write(path, pixels)
    assert list(path.parent.iterdir()) == []
    write(path, pixels)
    with pytest.raises(FileExistsError, match="exists: --overwrite"):
        write(path, pixels)
    write(path, 255 - pixels, overwrite=True)
    np.testing.assert_array_equal(np.moveaxis(zarr.open_array(path / "0")[:], 0, 2), 255 - pixels)
    (tmp_path / "photos.zarr").mkdir()
    (tmp_path / "photos.zarr" / "a.jpg").touch()
    with pytest.raises(FileExistsError, match=r"photos\.zarr has no zarr\.json, so it is not replaced"):
        write(tmp_path / "photos.zarr", pixels, overwrite=True)


def test_a_name_that_ends_in_zarr_is_the_result_itself(tmp_path: Path) -> None:
    """`--output restored.ome.zarr` must not become a folder of TIFFs, the second time neither."""
    path = tmp_path / "restored.ome.zarr"
    assert result_of(Path("slide.svs"), path) == path
    path.mkdir()
    assert result_of(Path("slide.svs"), path) == path
