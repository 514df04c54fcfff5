"""A figure names the command, the code and the machine behind it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from bundle.evaluation.origin import code_sha256, command_line, commit, hardware


def test_the_command_can_be_typed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of one machine's installation helps nobody else."""
    options = ["run", "evaluating", "--fields", "my fields"]
    monkeypatch.setattr("sys.argv", ["some/lib/python3.11/site-packages/monai/bundle/__main__.py", *options])
    assert command_line() == "python -m monai.bundle run evaluating --fields 'my fields'"
    monkeypatch.setattr("sys.argv", ["some/bin/mop", "restore"])
    assert command_line() == "mop restore"


def test_a_change_that_is_not_committed_shows(tmp_path: Path) -> None:
    """A commit's name under figures of other code sends the reader to the wrong lines."""
    assert commit(tmp_path) is None
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    (tmp_path / "a.py").write_text("x = 1\n")
    for arguments in (["init", "-q"], ["add", "a.py"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *arguments], cwd=tmp_path, check=True)
    head = commit(tmp_path)
    assert head is not None and len(head) == 40
    (tmp_path / "a.py").write_text("x = 2\n")
    assert commit(tmp_path) == head + "-dirty"


def test_the_code_has_another_checksum_after_any_change(tmp_path: Path) -> None:
    """Records of old code must not be mixed with those of new code, committed or not."""
    (tmp_path / "a.py").write_text("x = 1\n")
    first = code_sha256(tmp_path)
    (tmp_path / "notes.md").write_text("no code")
    assert code_sha256(tmp_path) == first
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert code_sha256(tmp_path) != first


def test_the_processor_is_named() -> None:
    """Seconds without a machine are not comparable."""
    assert "CPU cores (" in hardware(torch.device("cpu"))
