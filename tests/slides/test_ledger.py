"""The ledger: a finished block is there and whole, an unfinished one is not, and no other job goes on from it."""

import json
from pathlib import Path

import numpy as np
import pytest

from bundle.slides.grid import Box, TileGrid
from bundle.slides.ledger import BlockLedger

SHAPE, BLOCK_PX = (70, 130), 50
NOTHING = (0.0,) * 4  # figures of a block
JOB = {"source": "abc", "seed": 3}


def open_ledger(folder: Path, job: dict[str, object] = JOB) -> BlockLedger:
    return BlockLedger(folder / "a.tif.partial", SHAPE, BLOCK_PX, job)


def pixels_of(block: Box) -> np.ndarray:
    draw = np.random.default_rng(block.row * 1000 + block.col)
    return draw.integers(0, 256, (block.height, block.width, 3), np.uint8)


def test_finished_blocks_are_found_by_the_next_process(tmp_path: Path) -> None:
    """The whole point: work of hours is not done twice, and what was not done is not taken for done."""
    blocks = list(TileGrid(*SHAPE, 50, 0).blocks(BLOCK_PX))
    ledger = open_ledger(tmp_path)
    assert ledger.empty
    for block in blocks[::2]:
        ledger.put(block, pixels_of(block), (block.row, block.col, 0.5, 2))
    again = open_ledger(tmp_path)
    assert not again.empty and [again.has(block) for block in blocks] == [True, False] * 3
    for block in blocks[::2]:
        np.testing.assert_array_equal(again.read(block), pixels_of(block))
        assert again.figures(block).tolist() == [block.row, block.col, 0.5, 2]
    np.testing.assert_array_equal(again.read(Box(7, 3, 20, 11)), pixels_of(blocks[0])[7:27, 3:14])


def test_a_black_block_counts_as_finished(tmp_path: Path) -> None:
    """zarr leaves out chunks of zeros by default: a black block would be restored again and again."""
    ledger = open_ledger(tmp_path)
    ledger.put(Box(0, 0, 50, 50), np.zeros((50, 50, 3), np.uint8), NOTHING)
    assert ledger.has(Box(0, 0, 50, 50))


@pytest.mark.parametrize(("job", "named"), [({"source": "abd", "seed": 3}, "source"), ({"source": "abc"}, "seed")])
def test_another_job_is_refused_and_told_what_differs(tmp_path: Path, job: dict[str, object], named: str) -> None:
    """Half a slide of one seed and half of another is no result."""
    open_ledger(tmp_path)
    with pytest.raises(ValueError, match=f"unfinished work with another {named}: "):
        open_ledger(tmp_path, job)


def test_a_ledger_that_was_killed_while_it_was_made_begins_anew(tmp_path: Path) -> None:
    """Without its job nobody knows whose blocks these are."""
    ledger = open_ledger(tmp_path)
    ledger.put(Box(0, 0, 50, 50), pixels_of(Box(0, 0, 50, 50)), NOTHING)
    (ledger.folder / "job.json").unlink()
    assert open_ledger(tmp_path).empty
    assert json.loads((ledger.folder / "job.json").read_text())["seed"] == 3


def test_only_whole_blocks_are_kept(tmp_path: Path) -> None:
    """Two halves of a chunk would be two writes, and a kill between them leaves half a block that looks whole."""
    with pytest.raises(ValueError, match="whole blocks of 50 px"):
        open_ledger(tmp_path).put(Box(0, 0, 50, 40), pixels_of(Box(0, 0, 50, 40)), NOTHING)


def test_two_processes_do_not_share_a_ledger(tmp_path: Path) -> None:
    """Two runs of one command at a time would take turns at the same blocks."""
    held = open_ledger(tmp_path)
    held.lock()
    with pytest.raises(ValueError, match="is being written by another process"):
        open_ledger(tmp_path).lock()
    held.release()
    open_ledger(tmp_path).lock()
