"""Finished work on the disk: what a killed run has done, its successor does not do again.

    NAME.partial/job.json     what is restored and how; another job may not go on from here
    NAME.partial/plan.npz     what is to be done (slide_plan.py)
    NAME.partial/pixels       zarr v3, uint8 (H, W, 3), one chunk a block
    NAME.partial/figures      zarr v3, float64 (block rows, block columns, figures), one chunk a block

zarr's local store writes a chunk under another name and renames it: a chunk that is there is whole. Figures are
written before pixels, so a block is finished when its pixels are there.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from bundle.slides.grid import Box

FIGURES = 4
_JOB = "job.json"
_PARTS = ("pixels", "figures", "plan.npz", "trust")
_JUST_BEGUN_S = 60  # a run that makes its ledger has written its job long before


class BlockLedger:
    """The finished blocks of one image.

    Args:
        folder: of the ledger, made if needed.
        shape: (height, width) px of the image.
        block_px: side of a block.
        job: what identifies the work, JSON values; the same job goes on where it stopped.

    Raises:
        ValueError: the folder holds another job; says what differs.
    """

    def __init__(self, folder: Path, shape: tuple[int, int], block_px: int, job: Mapping[str, Any]) -> None:
        self.folder, self.shape, self.block_px = folder, shape, block_px
        self._lock = -1
        wanted = json.loads(json.dumps(dict(job) | {"shape": shape, "block_px": block_px}))
        if not (folder / _JOB).is_file():
            try:
                self._create(wanted)
            except OSError:  # a full or an unwritable disk leaves no half-made folder
                shutil.rmtree(folder, ignore_errors=True)
                raise
        else:
            self._refuse_other(json.loads((folder / _JOB).read_text(encoding="utf-8")), wanted)
        # zarr leaves out chunks of the fill value: a black block would never count as finished.
        self._pixels, self._figures = (
            zarr.open_array(folder / name, mode="r+").with_config({"write_empty_chunks": True})
            for name in ("pixels", "figures")
        )

    def _create(self, job: Mapping[str, Any]) -> None:
        # A run killed while it made the folder left no job and no work.
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        height, width = self.shape
        chunk = min(self.block_px, height), min(self.block_px, width)
        zarr.create_array(self.folder / "pixels", shape=(height, width, 3), chunks=(*chunk, 3), dtype="uint8",
                          zarr_format=3)  # fmt: skip
        rows, cols = -(-height // self.block_px), -(-width // self.block_px)
        zarr.create_array(self.folder / "figures", shape=(rows, cols, FIGURES), chunks=(1, 1, FIGURES),
                          dtype="float64", zarr_format=3)  # fmt: skip
        temporary = self.folder / f"{_JOB}.tmp"
        temporary.write_text(json.dumps(job, indent=1), encoding="utf-8")
        temporary.replace(self.folder / _JOB)

    def _refuse_other(self, held: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        different = sorted(key for key in held.keys() | wanted.keys() if held.get(key) != wanted.get(key))
        if different:
            raise ValueError(
                f"{self.folder} holds unfinished work with another {', '.join(different)}: "
                "repeat the command that began it, or --overwrite drops that work."
            )

    def _place(self, block: Box) -> tuple[int, int]:
        row, col = block.row // self.block_px, block.col // self.block_px
        whole = Box(row * self.block_px, col * self.block_px, self.block_px, self.block_px)
        if whole.overlap(Box(0, 0, *self.shape)) != block:
            raise ValueError(f"a ledger keeps whole blocks of {self.block_px} px, got {tuple(block)}.")
        return row, col

    def _chunk(self, name: str, row: int, col: int) -> Path:
        return self.folder / name / "c" / str(row) / str(col) / "0"

    @property
    def empty(self) -> bool:
        """Whether no block is finished."""
        return next((self.folder / "pixels").glob("c/*/*/0"), None) is None

    def has(self, block: Box) -> bool:
        """Whether a block is finished."""
        return self._chunk("pixels", *self._place(block)).is_file()

    def put(self, block: Box, pixels: NDArray[np.uint8], figures: Sequence[float]) -> None:
        """Keep a finished block, (height, width, 3), and its `FIGURES` figures."""
        row, col = self._place(block)
        self._figures[row, col] = np.asarray(figures, np.float64)
        self._pixels[block.row : block.bottom, block.col : block.right] = pixels

    def figures(self, block: Box) -> NDArray[np.float64]:
        """The figures of a finished block."""
        return np.asarray(self._figures[self._place(block)])

    def read(self, box: Box) -> NDArray[np.uint8]:
        """Pixels of finished blocks, (height, width, 3)."""
        return np.asarray(self._pixels[box.row : box.bottom, box.col : box.right])

    def lock(self) -> None:
        """Keep other processes away until `release`; the system releases a killed process's lock.

        Raises:
            ValueError: another process holds it.
        """
        self._lock = _locked(self.folder)
        for unfinished in self.folder.glob(".mop-*.tmp"):  # files of a killed run
            if unfinished.is_dir():
                shutil.rmtree(unfinished)
            else:
                unfinished.unlink()

    def release(self) -> None:
        """Let others in."""
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1

    def remove(self) -> None:
        """Drop all of it."""
        # Without its job the folder is no work to go on from, even if the removal is interrupted.
        (self.folder / _JOB).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def is_remainder(folder: Path) -> bool:
    """Whether a folder is what an interrupted removal left of a ledger: no work, nothing of others, not just begun."""
    held = {path.name for path in folder.iterdir()}
    ours = {name for name in held if name in _PARTS or (name.startswith(".mop-") and name.endswith(".tmp"))}
    return held == ours and time.time() - folder.stat().st_mtime > _JUST_BEGUN_S


def drop_unfinished(folder: Path) -> None:
    """Remove the work of another job.

    Raises:
        ValueError: a process is still at it.
    """
    lock = _locked(folder)
    try:
        (folder / _JOB).unlink()
        shutil.rmtree(folder)
    finally:
        os.close(lock)


def _locked(folder: Path) -> int:
    """A descriptor that holds the folder's lock until it is closed."""
    lock = os.open(folder / _JOB, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not (folder / _JOB).exists() or not os.path.samestat(os.fstat(lock), (folder / _JOB).stat()):
            raise BlockingIOError("the work was replaced meanwhile")
    except OSError as error:
        os.close(lock)
        raise ValueError(f"{folder} is being written by another process: wait for it or stop it.") from error
    return lock


def free_bytes(folder: Path) -> int:
    """Free disk where `folder` is or will be."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    disk = os.statvfs(existing)
    return disk.f_bavail * disk.f_frsize
