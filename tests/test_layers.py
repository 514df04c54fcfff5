"""Who may import whom: the table of the architecture, held by reading the imports of every module."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "bundle"

# A room is a folder or a module directly in bundle/. It may import itself and the rooms named here.
MAY_IMPORT: dict[str, set[str]] = {
    "conventions": set(),
    "host": set(),
    "progress": set(),
    "arguments": set(),
    "weights": set(),
    "optics": {"conventions"},
    "slides": {"conventions", "progress"},
    "prompts": {"conventions"},
    "data": {"conventions", "optics", "slides"},  # planes of focal stacks are read as all images are
    # Its command is a part of `cli` with a file of its own, as that of `exporting`: hence arguments, host and messages.
    "preparation": {
        "arguments", "conventions", "data", "host", "messages", "optics", "progress", "report", "slides",
    },
    "p_former": {"conventions", "prompts"},
    "p_diffusion": {"conventions", "prompts"},
    "training": {"conventions", "data", "optics", "prompts", "p_former", "p_diffusion", "weights"},
    "restoration": {"conventions", "optics", "prompts", "p_former", "p_diffusion"},
    "beside": set(),
    "slide_plan": {"beside", "conventions", "progress", "prompts", "slides"},
    "tile_runs": {"beside", "conventions", "slide_plan", "slides"},
    "slide_restoration": {
        "beside", "conventions", "progress", "restoration", "slide_plan", "slides", "tile_runs", "trust",
    },
    "trust": {"optics", "restoration", "slides"},  # what the scanner would have recorded of a result is optics
    "slide_report": {"conventions", "progress", "prompts", "report", "slide_plan", "slides", "trust", "viewing"},
    "field_restoration": {"conventions", "restoration", "slides"},
    "report": {"conventions", "restoration", "slides"},
    "loading": {"conventions", "messages", "restoration", "slide_plan", "weights"},
    "provenance": {"progress", "slides"},
    "doctor": {"loading", "provenance", "slides"},
    "slide_job": {
        "loading", "messages", "progress", "provenance", "slide_plan", "slide_report", "slide_restoration", "slides",
        "trust", "wishes",
    },
    "wishes": {"slides", "trust"},
    # `cli`'s other way to run slide jobs.
    "ray_engine": {"messages", "slide_job", "slide_restoration", "slides", "wishes"},
    "messages": {"progress", "slide_plan", "slide_restoration", "slides"},
    "image_jobs": {"arguments", "messages", "slides"},
    # A part of `cli` with a file of its own.
    "restore_command": {
        "arguments", "image_jobs", "loading", "messages", "ray_engine", "slide_job", "slide_plan", "slide_restoration",
        "slides", "wishes",
    },
    "image_restorer": {"conventions", "field_restoration", "loading", "restoration", "slides"},
    # Its command is a part of `cli` with a file of its own: hence arguments, loading and messages. The MLflow model
    # serves pictures as scripts restore them: hence image_restorer.
    "exporting": {
        "arguments", "conventions", "image_restorer", "loading", "messages", "p_former", "restoration", "slides",
    },
    # Its command is a part of `cli` with a file of its own: hence arguments and messages.
    "viewing": {"arguments", "messages", "slides"},
    "simulation": {"conventions", "optics", "slides"},
    "focus_files": {"report", "slide_restoration", "slides"},
    "slide_focus": {"report", "slide_plan", "slide_report", "slides"},
    "evaluation": {
        "conventions", "data", "field_restoration", "optics", "prompts", "restoration", "slide_restoration", "slides",
        "training", "weights",
    },
    # The paper's tables train rows and score them: the one room that needs both trainers and the protocol.
    "reproduction": {
        "conventions", "data", "evaluation", "p_diffusion", "p_former", "prompts", "restoration", "slides", "training",
        "weights",
    },
}
ANYTHING = {"cli"}  # may import every room; no room may import it
RESTORE_PATH = {"restoration", "slide_restoration", "field_restoration", "loading", "image_restorer"}
NOT_TO_RESTORE = {"training", "data", "evaluation"}

# Packages that are missing on many machines or slow to import: inside a function, and only in these files.
ONLY_IN_FUNCTIONS = {
    "timm": {"prompts/foundation.py"},
    "transformers": {"prompts/foundation.py"},
    "lpips": {"training/metrics.py"},
    "torchvision": {"prompts/foundation.py", "training/metrics.py"},
}


class Import(NamedTuple):
    """One import statement."""

    module: str  # full name, as in `from module import name`
    inside_function: bool
    line: int


def imports_of(source: str) -> Iterator[Import]:
    """Every import in a module, nested ones too; `from bundle import x` counts as `bundle.x`."""

    def walk(node: ast.AST, inside: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, inside, child.lineno) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                module = "." * child.level + (child.module or "")
                names = [f"{module}.{alias.name}" for alias in child.names] if module == "bundle" else [module]
                yield from (Import(name, inside, child.lineno) for name in names)
            else:
                is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, inside or is_function)

    yield from walk(ast.parse(source), False)


def room_of(path: Path) -> str:
    """`bundle/optics/pupil.py` -> `optics`, `bundle/cli.py` -> `cli`."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def room_imports(source: str) -> Iterator[tuple[str, int]]:
    """(room, line) of every import from the package itself."""
    for item in imports_of(source):
        parts = item.module.split(".")
        if parts[0] == "bundle" and len(parts) > 1 and not parts[1].startswith("__"):
            yield parts[1], item.line


def broken_rules(source: str, room: str, file: str) -> list[str]:
    """What a module breaks, one line each."""
    broken = []
    for other, line in room_imports(source):
        if room not in ANYTHING and other != room and other not in MAY_IMPORT[room]:
            broken.append(f"{file}:{line}: {room} may not import {other}")
    for item in imports_of(source):
        top = item.module.split(".")[0]
        if top == "":
            broken.append(f"{file}:{item.line}: relative import")
        if top in ONLY_IN_FUNCTIONS and not (item.inside_function and file in ONLY_IN_FUNCTIONS[top]):
            broken.append(f"{file}:{item.line}: {top} may be imported only inside a function of "
                          f"{', '.join(sorted(ONLY_IN_FUNCTIONS[top]))}")
        if top in {"scripts", "tests"}:
            broken.append(f"{file}:{item.line}: nothing imports {top}")
    return broken


MODULES = sorted(PACKAGE.rglob("*.py"))
ROOM_MODULES = [path for path in MODULES if path.relative_to(PACKAGE).as_posix() != "__init__.py"]


def test_every_room_stands_in_the_table() -> None:
    """A room without a rule may import anything, and the one-way flow of data is lost without notice."""
    rooms = {room_of(path) for path in ROOM_MODULES}
    assert rooms <= set(MAY_IMPORT) | ANYTHING, rooms - set(MAY_IMPORT) - ANYTHING


def test_every_room_of_the_architecture_is_there() -> None:
    """A table about rooms that do not exist checks nothing."""
    missing = [room for room in set(MAY_IMPORT) | ANYTHING
               if not (PACKAGE / room).is_dir() and not (PACKAGE / f"{room}.py").is_file()]
    assert not missing


@pytest.mark.parametrize("path", ROOM_MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_room_imports_only_what_it_may(path: Path) -> None:
    """When optics knows about training, neither can be understood, tested or replaced alone."""
    source = path.read_text(encoding="utf-8")
    assert broken_rules(source, room_of(path), path.relative_to(PACKAGE).as_posix()) == []


def test_restoring_never_reaches_training() -> None:
    """A user who restores would need the training's packages, and would pay for their import."""
    reached, pending = set(), set(RESTORE_PATH)
    while pending:
        room = pending.pop()
        reached.add(room)
        files = (PACKAGE / room).rglob("*.py") if (PACKAGE / room).is_dir() else [PACKAGE / f"{room}.py"]
        for file in files:
            pending |= {other for other, _ in room_imports(file.read_text(encoding="utf-8"))} - reached
    assert not reached & NOT_TO_RESTORE


def test_importing_the_restorer_loads_nothing_heavy_that_monai_does_not_load() -> None:
    """Each of these packages takes seconds to import, or is absent where only the restore path is installed."""
    heavy = ["itk", "timm", "transformers", "lpips", "torchvision", "mlflow", "matplotlib", "skimage", "cv2",
             "bundle.training", "bundle.data", "bundle.evaluation"]
    program = (f"import sys; heavy = set({heavy}); import monai.inferers; before = heavy & set(sys.modules); "
               "import bundle.restoration, bundle.slide_restoration; print(sorted(heavy & set(sys.modules) - before))")
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


@pytest.mark.parametrize(("room", "source", "message"), [
    ("optics", "from bundle.training import metrics", "optics may not import training"),
    ("optics", "from bundle import restoration", "optics may not import restoration"),
    ("p_former", "import bundle.p_diffusion.schedule", "p_former may not import p_diffusion"),
    ("data", "def load():\n    from bundle.cli import main", "data may not import cli"),
    ("slides", "from .grid import Box", "relative import"),
    ("restoration", "import timm", "timm may be imported only inside a function"),
    ("report", "import scripts.demo", "nothing imports scripts"),
])
def test_the_reader_of_imports_finds_a_broken_rule(room: str, source: str, message: str) -> None:
    """A checker that finds nothing passes too."""
    assert any(message in line for line in broken_rules(source, room, f"{room}.py"))


def test_a_heavy_import_at_the_top_of_its_own_file_is_found() -> None:
    """In the right file but outside of a function it still breaks every import of that file."""
    assert broken_rules("import timm", "prompts", "prompts/foundation.py")
    assert not broken_rules("def build():\n    import timm", "prompts", "prompts/foundation.py")
