"""What the trust map is worth, from cells that --table kept."""

import csv
from pathlib import Path
from types import ModuleType

import pytest


def written(script: ModuleType, path: Path, spread: float) -> Path:
    """40 cells of two tiles whose error grows with the spread of the samples."""
    rows = [[place // 20, 1e-3 * place, spread * place, place, place, place, place] for place in range(40)]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([script.COLUMNS, *rows])
    return path


@pytest.mark.parametrize(("spread", "above"), [(1, True), (0.01, False)])
def test_the_error_is_told_above_the_limit_and_by_tenths(script: ModuleType, tmp_path: Path, spread: float, above: bool,
        capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    """A cell of doubt d has the error d / (spread x weight), so tenths rise and cells above the limit are the worst."""
    table = written(script, tmp_path / "cells.csv", spread)
    assert script.main(["--tables", str(table)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "error by tenths of doubt, several: 1.5 5.5 9.5 13.5 17.5 21.5 25.5 29.5 33.5 37.5"
    first = next((place for place in range(40) if spread * place * script.MANY_SAMPLES.spread > script.LIMIT), 40)
    assert above == (first < 40)
    mean = (first + 39) / 2, (first - 1) / 2
    told = f"{40 - first} cells" + (f", error {mean[0]:.1f}; the others {mean[1]:.1f}" if above else "")
    assert lines[-2] == f"above the limit of {script.LIMIT:g}: {told}"


@pytest.mark.parametrize("given", [["nowhere"], ["--tables", "nowhere"]])
def test_a_place_that_is_not_there_is_one_sentence(script: ModuleType, given: list[str],
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    """Fields and tables alike."""
    assert script.main(given) == 1
    told = capsys.readouterr()
    assert told.err.startswith("measure_trust.py: ") and "nowhere" in told.err and told.err.count("\n") == 1
    assert not told.out
