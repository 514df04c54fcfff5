"""What the command line says while it works."""

from __future__ import annotations

import io
import re

import pytest
import rich.console
from monai.transforms import apply_transform

from bundle.messages import as_program, progress_bars, sentence, unwrapped


def test_a_bar_says_what_is_under_way_in_80_columns_and_begins_each_phase_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The total of the phase before would promise an end that is none; a line that wraps fills the screen."""
    screen = io.StringIO()
    console = rich.console.Console(file=screen, force_terminal=True, width=80)
    monkeypatch.setattr(rich.console, "Console", lambda **_: console)

    def shown() -> str:
        bars.refresh()
        text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue()).replace("\n", "\r").rsplit("\r", 1)[-1]
        screen.truncate(0)
        screen.seek(0)
        return text.rstrip()

    with progress_bars() as of_image:
        bars = next(cell.cell_contents for cell in of_image.__closure__ or () if hasattr(cell.cell_contents, "refresh"))
        follow = of_image("tcga-cr-7395-01a-01.svs")
        follow("MB hashed")(3021, 3021)
        assert "3021/3021 MB hashed" in shown()
        restored = follow("tiles restored")
        assert "0/? tiles restored" in shown()
        restored(400, 10816)
        line = shown()
        assert "400/10816 tiles restored" in line and line.endswith("left") and len(line) <= 80
        follow("rows written")
        assert "tiles" not in shown()


def test_where_nobody_looks_nothing_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    """A log file full of bars hides the one sentence that matters."""
    with progress_bars() as of_image:
        of_image("a.svs")("tiles restored")(1, 2)
    assert capsys.readouterr().err == ""


def test_of_an_error_in_a_config_the_part_s_own_sentence_is_told() -> None:
    """MONAI wraps it twice; below it may lie a library's words that name no file."""
    inner = ValueError("a datalist must be JSON, data/datalist.json is not")
    inner.__cause__ = ValueError("Unterminated string")
    outer = RuntimeError("Failed to evaluate ConfigExpression")
    outer.__cause__ = RuntimeError("Failed to instantiate component 'bundle.data.fields.field_records'")
    outer.__cause__.__cause__ = inner
    assert unwrapped(outer) is inner and unwrapped(inner) is inner


def test_of_an_error_in_a_transform_the_transform_s_own_sentence_is_told() -> None:
    """MONAI names the object that failed, "applying transform <… at 0x7f…>", and not what is wrong with the field."""
    small = ValueError("fields must be at least 320 px a side to be cropped, got 256 px.")

    def refuse(data: object) -> None:
        raise small

    with pytest.raises(RuntimeError) as caught:
        apply_transform(refuse, {})
    outer = RuntimeError("Failed to evaluate ConfigExpression")
    outer.__cause__ = caught.value
    assert unwrapped(outer) is small


def test_of_an_error_in_a_worker_its_last_line_is_told() -> None:
    """torch puts the worker's whole stack into the message: as one line it is a screen full."""
    message = ("Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
               '  File "loop.py", line 1, in work\nValueError: a.png is cut short\n')
    assert sentence(ValueError(message)) == "a.png is cut short."


@pytest.mark.parametrize(("error", "told"), [
    (ValueError("--every must be 1 or more, got 0"), "test_messages.py: --every must be 1 or more, got 0.\n"),
    (FileNotFoundError(2, "No such file", "a.png"), "test_messages.py: No such file (a.png).\n"),
    (RuntimeError("CUDA out of memory"), "test_messages.py: memory is not enough: use smaller batches or patches.\n"),
])  # fmt: skip
@pytest.mark.parametrize("wrapped", [False, True])
def test_what_a_script_s_user_can_mend_is_one_sentence(error: Exception, told: str, wrapped: bool,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    """As it is, and from inside a config's parser."""
    outer = RuntimeError("Failed to evaluate ConfigExpression")
    outer.__cause__ = error

    @as_program
    def main(typed: list[str]) -> None:
        raise outer if wrapped else error

    assert main(["a"]) == 1
    assert capsys.readouterr() == ("", told)


def test_a_script_that_ends_well_says_so_and_a_fault_of_ours_keeps_its_stack() -> None:
    """A sentence without a stack would hide where the fault is."""

    @as_program
    def main(error: Exception | None = None) -> None:
        if error:
            raise error

    assert main() == 0
    for ours in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), TypeError("an int is wanted")):
        outer = RuntimeError("Failed to evaluate ConfigExpression")
        outer.__cause__ = ours
        for error in (ours, outer):
            with pytest.raises(type(error)):
                main(error)


def test_want_of_memory_is_told_with_what_to_do() -> None:
    """The most common error of a first training on a GPU."""
    assert sentence(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")).startswith("memory is not enough: use")
