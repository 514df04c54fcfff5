"""scripts/measure_stain.py: the figures that the stain transform draws from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bundle.data.phantom import write_phantom_fields
from bundle.data.stain import DEVIATIONS, MEANS


def test_the_script_prints_constants_in_the_form_of_the_module(tmp_path: Path) -> None:
    """Figures that cannot be pasted are copied by hand, with errors."""
    folder = write_phantom_fields(tmp_path, train=2, val=1, test=0, size_px=128)
    result = subprocess.run([sys.executable, "scripts/measure_stain.py", folder, "--patch-px", "64"],
                            capture_output=True, text=True, check=True, env={"PYTHONPATH": "."})
    first, *constants = result.stdout.splitlines()
    assert first == "8 patches of 64 px"
    for line, name, like in zip(constants, ("MEANS", "DEVIATIONS"), (MEANS, DEVIATIONS), strict=True):
        assert line.startswith(f"{name} = (")
        values = [float(value) for value in line.partition("=")[2].replace("(", "").replace(")", "").split(",")]
        assert len(values) == 2 * len(like)
    assert 5 < values[0] < 40  # deviation of L


def test_a_folder_without_an_index_ends_in_one_sentence(tmp_path: Path) -> None:
    """A wrong path must not print figures."""
    result = subprocess.run([sys.executable, "scripts/measure_stain.py", str(tmp_path)], capture_output=True, text=True,
                            check=False, env={"PYTHONPATH": "."})
    assert result.returncode == 1 and not result.stdout
    assert result.stderr.startswith("measure_stain.py: ") and "index.json" in result.stderr
    assert result.stderr.count("\n") == 1
