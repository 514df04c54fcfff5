"""Pack the MONAI bundle as the model zoo wants it: mop_pathology_restoration_vX.zip, checked before it is written.

    python scripts/package_bundle.py --output dist          # seconds

Reads   configs/, models/model.pt, docs/, LICENSE, requirements.txt and the package of this checkout
Writes  dist/mop_pathology_restoration_v0.1.0.zip, the same bytes from the same files

What the zoo's own checks ask for, in our own words: metadata whose changelog holds its version, whose packages are
pinned; the files that its tools open; no file above 25 MB; no link that leads out of the package.
"""

from __future__ import annotations

import argparse
import json
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

from bundle.messages import as_program
from bundle.slides.whole_files import replace_when_done

ROOT = Path(__file__).resolve().parent.parent
NAME = "mop_pathology_restoration"
KINDS = ("py", "js", "css", "html", "LICENSE.txt", "typed")  # of the package's files
PATTERNS = ("LICENSE", "requirements.txt", "configs/**/*.json", "configs/logging.conf", "models/README.md",
            "models/model.pt", "docs/**/*.md", "docs/pictures/*.png", "docs/data_license.txt",
            *(f"bundle/**/*.{kind}" for kind in KINDS))
NEEDED = ("LICENSE", "configs/metadata.json", "configs/inference.json", "configs/train.json", "configs/evaluate.json",
          "configs/logging.conf", "models/model.pt", "docs/README.md", "docs/data_license.txt", "bundle/restoration.py")
KEYS = ("version", "changelog", "monai_version", "pytorch_version", "numpy_version", "required_packages_version",
        "name", "task", "description", "authors", "copyright", "network_data_format")
LARGEST_MB = 25.0  # above it the zoo wants a large_files.yml with an address, and there is none to give
LINK = re.compile(r"\]\(([^)\s#]+)[^)]*\)")


def members(root: Path) -> list[str]:
    """The files of the bundle, as paths relative to its root, sorted."""
    found = {path.relative_to(root).as_posix() for pattern in PATTERNS for path in root.glob(pattern)}
    return sorted(found)


def problems(root: Path) -> list[str]:
    """What the zoo would refuse, one sentence each; none is well."""
    names = members(root)
    missing = [name for name in NEEDED if name not in names]
    if missing:
        return [f"a bundle must hold {name}, it is missing." for name in missing]
    metadata = json.loads((root / "configs" / "metadata.json").read_text(encoding="utf-8"))
    found = [f"metadata.json must hold {key}, it does not." for key in KEYS if key not in metadata]
    if found:
        return found
    if metadata["version"] not in metadata["changelog"]:
        found.append(f"the changelog of metadata.json must hold its version {metadata['version']}, it does not.")
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", (root / "requirements.txt").read_text(), flags=re.MULTILINE))
    named = {"monai": metadata["monai_version"], "torch": metadata["pytorch_version"],
             "numpy": metadata["numpy_version"], **metadata["required_packages_version"]}
    found += [f"{name} must be pinned as in requirements.txt ({pins.get(name)}), metadata.json says {version}."
              for name, version in named.items() if pins.get(name) != version]
    for name in names:
        size_mb = (root / name).stat().st_size / 1e6
        if size_mb > LARGEST_MB:
            found.append(f"a file must have at most {LARGEST_MB:.0f} MB, {name} has {size_mb:.1f}.")
    found += [f"a link must stay inside the bundle, {page} leads to {target}." for page, target in _lost(root, names)]
    return found


def package(root: Path, output: Path, overwrite: bool = False) -> Path:
    """Write the archive.

    Args:
        root: of the checkout.
        output: folder, made if needed.
        overwrite: replace an earlier archive.

    Returns:
        The archive; every path in it begins with the bundle's name.

    Raises:
        FileExistsError: the archive exists and `overwrite` is False.
        ValueError: the bundle would be refused; names the first problem.
    """
    found = problems(root)
    if found:
        raise ValueError(found[0])
    version = json.loads((root / "configs" / "metadata.json").read_text(encoding="utf-8"))["version"]
    path = output / f"{NAME}_v{version}.zip"
    with replace_when_done(path, overwrite) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in members(root):
            # The epoch of the format instead of the file's own time: the same files give the same archive.
            entry = zipfile.ZipInfo(f"{NAME}/{name}", (1980, 1, 1, 0, 0, 0))
            entry.external_attr, entry.compress_type = 0o644 << 16, zipfile.ZIP_DEFLATED
            archive.writestr(entry, (root / name).read_bytes())
    return path


def _lost(root: Path, names: Sequence[str]) -> list[tuple[str, str]]:
    """(page, target) of every local link whose file is not in the bundle."""
    lost = []
    for page in (name for name in names if name.endswith(".md")):
        for target in LINK.findall((root / page).read_text(encoding="utf-8")):
            if re.match(r"https?:|mailto:", target):
                continue
            led = ((root / page).parent / target).resolve()
            if not led.is_relative_to(root.resolve()) or led.relative_to(root.resolve()).as_posix() not in names:
                lost.append((page, target))
    return lost


@as_program
def main(arguments: Sequence[str] | None = None) -> None:
    """Pack the checkout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("dist"), help="folder of the archive, default dist")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier archive")
    options = parser.parse_args(arguments)
    path = package(ROOT, options.output, options.overwrite)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {len(members(ROOT))} files")


if __name__ == "__main__":
    raise SystemExit(main())
