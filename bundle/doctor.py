"""What this machine has for restoring, and what to do about each gap: `mop doctor`."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import torch

from bundle.loading import BUNDLE_ROOT, load_tile_restorer
from bundle.provenance import sha256_of
from bundle.slides.ledger import free_bytes

# module -> (package, what is lost without it); every one is pinned in requirements.txt
READERS = {
    "PIL": ("pillow", "PNG and JPEG"),
    "tifffile": ("tifffile", "TIFF and OME-TIFF"),
    "imagecodecs": ("imagecodecs", "compressed TIFF"),
    "openslide": ("openslide-python", "slides of scanners: SVS, NDPI, MRXS, SCN, BIF, Philips"),
    "wsidicom": ("wsidicom", "DICOM slides"),
    "wsidicomizer": ("wsidicomizer", "results as DICOM"),
    "zarr": ("zarr", "results as TIFF, and going on after a stop"),
}
LEAST_MEMORY_GB, LEAST_DISK_GB = 4, 20
_INSTALL = "run `make install`"


class Finding(NamedTuple):
    """One thing that was looked at."""

    what: str
    found: str
    advice: str = ""  # empty where nothing is to be done
    fatal: bool = False  # restoring does not work without it

    @property
    def line(self) -> str:
        """One line for the terminal."""
        mark = "FAIL" if self.fatal else "gap " if self.advice else "ok  "
        return f"{mark}  {self.what}: {self.found}" + (f" -> {self.advice}" if self.advice else "")


def examine(config: Path, weights: Path) -> list[Finding]:
    """Look at everything that restoring needs.

    Args:
        config: declares the network.
        weights: of the network.
    """
    findings = [_python(), _memory(), _disk(Path.cwd()), _device()]
    findings += [_package(module, *about) for module, about in READERS.items()]
    return [*findings, *_network(config, weights)]


def _python() -> Finding:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    right = sys.version_info[:2] == (3, 11)
    return Finding("python", found, "" if right else "use Python 3.11, which the pinned packages were tested with")


def _memory() -> Finding:
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    found = f"{memory_gb:.0f} GB, {os.cpu_count()} CPU cores"
    return Finding("memory", found, "" if memory_gb >= LEAST_MEMORY_GB else "close other programs, keep --batch 1")


def _disk(folder: Path) -> Finding:
    free_gb = free_bytes(folder) / 1e9
    advice = "" if free_gb >= LEAST_DISK_GB else "a slide may need more: ask `mop restore SLIDE --dry-run`"
    return Finding("disk", f"{free_gb:.0f} GB free in this folder", advice)


def _device() -> Finding:
    found = f"torch {torch.__version__}"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
        return Finding("gpu", f"{found}, {', '.join(names)}: pass --device cuda")
    built = "a CUDA build finds no GPU" if torch.version.cuda else "a build without CUDA"
    return Finding("gpu", f"{found}, {built}", "the CPU is used; a GPU needs its driver and a CUDA build of torch")


def _package(module: str, package: str, purpose: str) -> Finding:
    try:
        if module != "wsidicomizer":  # its import makes pydicom strict for the whole process
            importlib.import_module(module)
        return Finding(package, f"{version(package)}, {purpose}")
    except (ImportError, OSError, PackageNotFoundError) as error:  # OSError: a shared library that does not load
        fatal = module in ("PIL", "tifffile", "imagecodecs", "zarr")
        return Finding(package, f"{purpose}: {type(error).__name__}", _INSTALL, fatal)


def _network(config: Path, weights: Path) -> list[Finding]:
    for path, what in ((config, "config"), (weights, "weights")):
        if not path.is_file():
            return [Finding(what, f"{path} is missing", "take it from the repository or name another", fatal=True)]
    digest = sha256_of(weights)
    listed = BUNDLE_ROOT / "models" / "README.md"
    known = listed.is_file() and digest in listed.read_text(encoding="utf-8")
    advice = "" if known else "not the shipped weights of models/README.md: right if they are your own"
    found = [Finding("weights", f"{weights.name}, sha256 {digest}", advice)]
    try:
        network = load_tile_restorer(config, weights)
    except (ValueError, OSError) as error:
        sentence = " ".join(str(error).split())
        return [*found, Finding("network", sentence, "use weights and config of one training", fatal=True)]
    count = sum(parameter.numel() for parameter in network.parameters())
    return [*found, Finding("network", f"{config.name} takes these weights, {count / 1e6:.2f} M parameters")]
