"""Where a figure comes from: the command, the commit and the machine that made it."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import torch


def command_line() -> str:
    """What was typed, with `python -m module` in place of the module's file."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        parts = program.parent.parts
        package = parts[parts.index("site-packages") + 1 :] if "site-packages" in parts else parts[-1:]
        return shlex.join(["python", "-m", ".".join(package), *sys.argv[1:]])
    return shlex.join([program.name, *sys.argv[1:]])


def commit(folder: Path) -> str | None:
    """Commit of the repository around `folder`, "-dirty" behind it where tracked files differ; None without one."""
    try:
        head = _git(folder, "rev-parse", "HEAD")
        changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("-dirty" if changes else "")


def _git(folder: Path, *arguments: str) -> str:
    finished = subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return finished.stdout.strip()


def code_sha256(package: Path) -> str:
    """One checksum over every module of a package: figures of changed code are not those of this code."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def hardware(device: torch.device) -> str:
    """The processor, and the GPU where one is used."""
    cores = f"{os.cpu_count()} CPU cores ({_processor()})"
    return f"{torch.cuda.get_device_name(device)}, {cores}" if device.type == "cuda" else cores


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    if facts.is_file():
        for line in facts.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
