"""The documents name commands, files and checksums that exist."""

import hashlib
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "models").glob("*.md")])
BLOCK = re.compile(r"^```[a-z]*\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
BINARY = {".png", ".pt", ".safetensors", ".ts", ".tif", ".tiff", ".jpg"}


def tracked_files() -> list[Path]:
    """What git tracks or would add; outside of a checkout everything but the folders that make writes."""
    listing = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True,
                             text=True, check=False)
    if listing.returncode == 0:
        return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]
    return [path for path in ROOT.rglob("*") if path.is_file() and ".venv" not in path.parts]


def code_blocks(page: Path) -> str:
    """All fenced code of a page."""
    return "\n".join(BLOCK.findall(page.read_text(encoding="utf-8")))


def tree_entries() -> list[str]:
    """Paths of the README's annotated tree: two spaces a level, the name before the first run of two spaces."""
    block = re.search(r"^## The tree\n.*?^```[a-z]*\n(.*?)^```", README.read_text(encoding="utf-8"),
                      flags=re.DOTALL | re.MULTILINE)
    assert block, "README.md must hold the section '## The tree' with a fenced block."
    entries, folders = [], []
    for line in block.group(1).splitlines():
        level = (len(line) - len(line.lstrip())) // 2
        name = re.split(r"\s{2,}", line.strip())[0]
        folders = [*folders[:level], name]
        entries.append("".join(folders[:-1]) + name)
    return entries


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_make_command_of_a_page_is_a_target(page: Path) -> None:
    """The first command that a newcomer types must not end in "No rule to make target"."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    text = code_blocks(page) + "\n" + "\n".join(re.findall(r"`(make [^`]*)`", page.read_text(encoding="utf-8")))
    assert set(re.findall(r"^make ([a-z-]+)", text, flags=re.MULTILINE)) <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_file_that_a_command_of_a_page_names_is_there(page: Path) -> None:
    """A command copied from a page must find its config and its script."""
    named = set(re.findall(r"\b((?:configs|scripts|models|docs)/[\w./-]+\.\w+)", code_blocks(page)))
    made = {"models/model.ts"}  # by `make export`
    assert not {name for name in named - made if not (ROOT / name).is_file()}


def test_make_lists_its_targets() -> None:
    """`make` alone is how a newcomer asks what there is."""
    listing = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("demo", "test", "lint", "evaluate", "train"):
        assert f"make {target} " in listing.stdout


def test_every_entry_of_the_readme_s_tree_exists() -> None:
    """A map that shows streets which are not there is worse than none."""
    entries = tree_entries()
    assert len(entries) > 20
    assert not [entry for entry in entries if not (ROOT / entry).exists()]


def test_every_room_script_page_and_config_stands_in_the_readme_s_tree() -> None:
    """A new folder that the map leaves out is not found by those who need it."""
    entries = set(tree_entries())
    rooms = {f"bundle/{path.name}/" for path in (ROOT / "bundle").iterdir() if (path / "__init__.py").is_file()}
    rooms |= {f"bundle/{path.name}" for path in (ROOT / "bundle").glob("*.py") if path.name != "__init__.py"}
    folders = (("scripts", "*.py"), ("docs", "*.*"), ("configs", "*.*"))
    rooms |= {f"{name}/{path.name}" for name, files in folders for path in (ROOT / name).glob(files)}
    assert rooms <= entries, rooms - entries


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    """A dead link hides the reason or the licence that it promised."""
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    local = [target.split("#")[0] for target in targets if not re.match(r"https?:|mailto:|#", target)]
    assert not [target for target in local if not (page.parent / target).exists()]


def test_no_file_names_a_path_or_a_registry_of_one_machine() -> None:
    """Such a line works for its author alone, and tells strangers about his machine."""
    folders = "|".join(["work", "farm", "home/[a-z]", "root", "Users", "tmp/[a-z]"])
    registries = r"--(?:extra-)?index-url|trusted-host|\bpypi\.|pythonhosted"
    machine = re.compile(rf"(?<![\w.~-])/(?:{folders})(?:/|\b)|{registries}")
    found = []
    for path in tracked_files():
        if path.suffix in BINARY or path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if machine.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not found


def test_checksums_of_the_weights_match_the_files() -> None:
    """Weights that are not the ones described give figures that nobody can explain."""
    text = (ROOT / "models" / "README.md").read_text(encoding="utf-8")
    weights = [path for path in (ROOT / "models").iterdir() if path.suffix in {".pt", ".safetensors"}]
    assert weights
    for path in weights:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        rows = [line for line in text.splitlines() if path.name in line and re.search(r"\b[0-9a-f]{64}\b", line)]
        assert rows, f"models/README.md must give the sha256 of {path.name} in one line with its name."
        assert any(digest in row for row in rows), path.name


def test_the_weights_are_small_enough_to_ship() -> None:
    """The zoo takes files of at most 25 MB, and a clone should not take minutes."""
    files = [path for path in (ROOT / "models").iterdir() if path.is_file() and path.suffix != ".ts"]  # not committed
    sizes = [path.stat().st_size for path in files]
    assert max(sizes) <= 25e6
    assert sum(sizes) <= 60e6


def test_the_model_card_has_the_zoo_s_sections() -> None:
    """The zoo's readers and checks look for these headings."""
    card = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for heading in ("Model Overview", "Data", "Preprocessing", "Training configuration", "Input", "Output",
                    "Performance", "MONAI Bundle Commands", "Limitations", "References", "License"):
        assert re.search(rf"^#+ {heading}$", card, flags=re.MULTILINE), heading


def test_the_licence_is_the_apache_licence() -> None:
    """A changed licence text is another licence."""
    text = (ROOT / "LICENSE").read_bytes()
    # sha256sum of the text that the Apache Software Foundation publishes as LICENSE-2.0.txt
    assert hashlib.sha256(text).hexdigest() == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
