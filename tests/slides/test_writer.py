"""The writer: what is written is what is read back, by us and by other libraries, and never half of it."""

import os
import random
import stat
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from bundle.slides.grid import Box, TileGrid
from bundle.slides.pyramid import Record
from bundle.slides.reader import open_image
from bundle.slides.whole_files import replace_when_done
from bundle.slides.writer import open_sink


def tissue(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(4).integers(0, 256, (height, width, 3)).astype(np.uint8)


def write_blocks(path: Path, pixels: np.ndarray, shuffle: bool = True, **options: object) -> None:
    height, width = pixels.shape[:2]
    blocks = list(TileGrid(height, width).blocks(100))
    if shuffle:
        random.Random(1).shuffle(blocks)
    overwrite = bool(options.pop("overwrite", False))
    record = Record(path.name, **options)
    with open_sink(path, (height, width), record, overwrite, block_px=100) as sink:
        for block in blocks:
            sink.write(block.row, block.col, pixels[block.row : block.bottom, block.col : block.right])


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.tiff", "a.ome.tif", "a.ome.tiff"])
def test_lossless_results_come_back_bit_by_bit(tmp_path: Path, name: str) -> None:
    """Blocks arrive in any order; a tile in the wrong place is tissue in the wrong place."""
    pixels = tissue(300, 530)
    write_blocks(tmp_path / name, pixels, mpp=0.25, icc_profile=b"profile")
    with open_image(tmp_path / name) as reader:
        np.testing.assert_array_equal(reader.read(0, 0, 300, 530), pixels)
        assert reader.icc_profile == b"profile"
        assert reader.mpp == (None if name == "a.png" else pytest.approx(0.25))
    with Image.open(tmp_path / name) as image:  # libtiff's reading of LZW with a predictor
        np.testing.assert_array_equal(np.asarray(image), pixels)


def test_ome_metadata_carries_the_pixel_size(tmp_path: Path) -> None:
    """QuPath and Bio-Formats read it from there."""
    write_blocks(tmp_path / "a.ome.tif", tissue(64, 64), mpp=0.2271)
    write_blocks(tmp_path / "b.ome.tif", tissue(64, 64))
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as tiff:
        assert tiff.is_ome and tiff.series[0].axes == "YXS"
        assert 'PhysicalSizeX="0.2271"' in tiff.ome_metadata and 'PhysicalSizeYUnit="µm"' in tiff.ome_metadata
    with tifffile.TiffFile(tmp_path / "b.ome.tif") as tiff:
        assert "PhysicalSize" not in tiff.ome_metadata


def test_jpeg_keeps_full_colour_resolution(tmp_path: Path) -> None:
    """Chroma subsampling smears eosin and haematoxylin over each other: more blur, in a tool against blur."""
    rows, cols = np.mgrid[:120, :160]
    pixels = np.stack([rows, cols, 255 - rows], axis=-1).astype(np.uint8)
    write_blocks(tmp_path / "a.jpeg", pixels)
    with Image.open(tmp_path / "a.jpeg") as image:
        assert {part[1:3] for part in image.layer} == {(1, 1)} and image.quantization[0][0] <= 2
        assert np.abs(np.asarray(image).astype(int) - pixels).mean() < 1.5


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_an_error_leaves_neither_a_file_nor_a_temporary(tmp_path: Path, name: str) -> None:
    """Half a result under the final name is taken for a result."""
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ZeroDivisionError), open_sink(out / name, (64, 64)) as sink:
        sink.write(1 // 0, 0, tissue(32, 64))
    with pytest.raises(ValueError, match="3072 are left"), open_sink(out / name, (64, 64), block_px=32) as sink:
        sink.write(0, 0, tissue(32, 32))
    assert list(out.iterdir()) == []


def test_a_failing_write_keeps_the_older_result(tmp_path: Path) -> None:
    """Overwriting must never cost both the old and the new file."""
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(TypeError), replace_when_done(path, overwrite=True) as file:
        file.writelines([b"new", "no bytes"])
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    with replace_when_done(path, overwrite=True) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_an_existing_result_is_replaced_only_when_asked(tmp_path: Path, name: str) -> None:
    """A night's work must not vanish by a second call."""
    write_blocks(tmp_path / name, tissue(64, 64))
    before = (tmp_path / name).read_bytes()
    with pytest.raises(FileExistsError, match=r"exists: --overwrite"):
        write_blocks(tmp_path / name, tissue(70, 70))
    assert (tmp_path / name).read_bytes() == before
    write_blocks(tmp_path / name, tissue(70, 70), overwrite=True)
    with open_image(tmp_path / name) as reader:
        assert reader.shape == (70, 70)


def test_a_result_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    """Two runs into one folder: the slower one must not win silently."""
    sink = open_sink(tmp_path / "a.png", (40, 40))
    sink.write(0, 0, tissue(40, 40))
    (tmp_path / "a.png").write_bytes(b"another's")
    with pytest.raises(FileExistsError, match="exists"):
        sink.__exit__(None, None, None)
    assert (tmp_path / "a.png").read_bytes() == b"another's" and len(list(tmp_path.iterdir())) == 1


def test_a_result_has_the_users_usual_permissions(tmp_path: Path) -> None:
    """A file that only its owner can read breaks shared folders."""
    mask = os.umask(0o022)
    try:
        write_blocks(tmp_path / "a.png", tissue(40, 40))
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "a.png").stat().st_mode) == 0o644


def test_a_large_tiff_is_not_held_in_memory(tmp_path: Path) -> None:
    """Peak memory must follow a row of tiles, not the slide."""
    block = tissue(512, 512) // 16
    tracemalloc.start()
    with open_sink(tmp_path / "a.tif", (4096, 4096), block_px=512) as sink:
        for row in range(0, 4096, 512):
            for col in range(0, 4096, 512):
                sink.write(row, col, block)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 * 2**20, peak  # the image has 48 MiB
    with open_image(tmp_path / "a.tif") as reader:
        np.testing.assert_array_equal(reader.read(3584, 2048, 512, 512), block)


@pytest.mark.parametrize(
    ("row", "pixels", "rule"),
    [
        (40, np.zeros((32, 64, 3), np.uint8), "inside the 64 x 64 px image"),
        (0, np.zeros((32, 64, 3), np.float32), r"\(h, w, 3\) uint8"),
        (0, np.zeros((32, 64), np.uint8), r"\(h, w, 3\) uint8"),
    ],
)
def test_a_block_states_its_rule(tmp_path: Path, row: int, pixels: np.ndarray, rule: str) -> None:
    """A float block would be truncated, a misplaced one would shift what follows in the file."""
    with pytest.raises(ValueError, match=rule), open_sink(tmp_path / "a.tif", (64, 64)) as sink:
        sink.write(row, 0, pixels)


def test_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    """The result keeps its input's name, so the suffix must be one that is written."""
    with pytest.raises(ValueError, match=r"got a\.bmp"):
        open_sink(tmp_path / "a.bmp", (64, 64))


def test_overwriting_does_not_pull_the_work_from_under_a_run(tmp_path: Path) -> None:
    """The blocks of two jobs in one folder would make one result of two seeds, or black holes."""
    path, pixels = tmp_path / "a.tif", tissue(100, 100)
    with open_sink(path, (100, 100), Record("a.tif"), block_px=100, job={"seed": 0}) as running:
        with pytest.raises(ValueError, match="is being written by another process"):
            open_sink(path, (100, 100), Record("a.tif"), True, block_px=100, job={"seed": 1})
        running.write(0, 0, pixels)
    with open_image(path) as reader:
        np.testing.assert_array_equal(reader.read(0, 0, 100, 100), pixels)


def test_another_jobs_unfinished_work_is_dropped_when_asked(tmp_path: Path) -> None:
    """Nobody is at it any more: --overwrite says that it may go."""
    path, pixels = tmp_path / "a.tif", tissue(100, 200)
    stopped = open_sink(path, (100, 200), Record("a.tif"), block_px=100, job={"seed": 0})
    stopped.write(0, 0, pixels[:, :100])
    stopped.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    with open_sink(path, (100, 200), Record("a.tif"), True, block_px=100, job={"seed": 1}) as sink:
        assert sink.resume(Box(0, 0, 100, 100)) is None
        for col in (0, 100):
            sink.write(0, col, pixels[:, col : col + 100])
    with open_image(path) as reader:
        np.testing.assert_array_equal(reader.read(0, 0, 100, 200), pixels)


def test_a_finished_block_that_was_removed_meanwhile_is_no_black_tissue(tmp_path: Path) -> None:
    """Who tidies a disk while a slide is restored must be told, not given a hole."""
    path = tmp_path / "a.tif"
    sink = open_sink(path, (100, 200), Record("a.tif"), block_px=100, job={"seed": 0})
    for col in (0, 100):
        sink.write(0, col, tissue(100, 100))
    (tmp_path / "a.tif.partial" / "pixels" / "c" / "0" / "1" / "0").unlink()
    with pytest.raises(ValueError, match="lacks a finished block: it was removed while this ran"):
        sink.__exit__(None, None, None)
    assert not path.exists()


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_a_plain_result_says_that_it_is_restored(tmp_path: Path, name: str) -> None:
    """Beside its source nobody tells them apart, and one of them is an estimate."""
    notes = {"warning": "restored: not for primary diagnosis", "source name": "Zoë.png"}
    with open_sink(tmp_path / name, (64, 90), Record(name, notes=notes), block_px=100) as sink:
        sink.write(0, 0, tissue(64, 90))
    with Image.open(tmp_path / name) as image:
        said = image.info.get("Description") or image.info.get("comment") or image.tag_v2[270]
    said = said.decode() if isinstance(said, bytes) else said
    assert said == "warning: restored: not for primary diagnosis; source name: Zo\\xeb.png"
