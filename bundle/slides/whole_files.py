"""Files and folders reach the disk whole or not at all: a temporary name, fsync, rename."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replace_when_done(path: Path, overwrite: bool = False, wait_in: Path | None = None) -> Iterator[IO[bytes]]:
    """A new file that gets its name only when the body ends without an error; else nothing remains of it.

    Args:
        path: the final name; its folder is made if needed.
        overwrite: replace a file of that name.
        wait_in: folder of the same file system for the unfinished file; None takes that of `path`.

    Raises:
        FileExistsError: `path` exists and `overwrite` is False.
    """
    refuse_existing(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not of the tempfile module: its files are readable by their owner alone, and the name keeps that mode.
    temporary = (wait_in or path.parent) / f".mop-{secrets.token_hex(8)}.tmp"
    try:
        with temporary.open("x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        refuse_existing(path, overwrite)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush(path.parent)


@contextmanager
def folder_when_done(path: Path, mark: str, overwrite: bool = False, wait_in: Path | None = None) -> Iterator[Path]:
    """A new folder that gets its name only when the body ends without an error; else nothing remains of it.

    Args:
        path: the final name.
        mark: a file that every such folder holds: only a folder that holds it is ever replaced.
        overwrite: replace an earlier folder of that name.
        wait_in: folder of the same file system for the unfinished one; None takes that of `path`.

    Raises:
        FileExistsError: `path` exists and `overwrite` is False, or it is not a folder of this kind.
    """
    refuse_folder(path, mark, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished, older = ((wait_in or path.parent) / f".mop-{secrets.token_hex(8)}.tmp" for _ in range(2))
    unfinished.mkdir()
    try:
        yield unfinished
        for inside in (*unfinished.rglob("*"), unfinished):
            _flush(inside)
        if path.exists():
            path.rename(older)
        unfinished.rename(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        if older.exists() and not path.exists():
            older.rename(path)
        shutil.rmtree(older, ignore_errors=True)
    _flush(path.parent)


def refuse_folder(path: Path, mark: str, overwrite: bool) -> None:
    """Refuse to replace a folder that is not a result of our own; see `folder_when_done`."""
    if path.exists() and not (overwrite and (path / mark).is_file()):
        rule = f"has no {mark}, so it is not replaced" if overwrite else "exists: --overwrite replaces it"
        raise FileExistsError(f"{path} {rule}.")


def _flush(path: Path) -> None:
    """Let a file or a folder reach the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Refuse to replace a file that nobody allowed to; see `replace_when_done`."""
    if path.is_dir() or (path.exists() and not overwrite):
        raise FileExistsError(f"{path} exists: --overwrite replaces a file.")
