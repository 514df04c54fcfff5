"""Work beside the network: in order, bounded, and no failure is lost."""

from __future__ import annotations

import threading

import pytest

from bundle.beside import AHEAD, ReadAhead, WriteBehind

SECONDS = 10


def test_values_come_in_order_and_are_read_before_they_are_asked_for() -> None:
    """Otherwise the network waits for the disk at every batch; read without bound, a slide would fill the memory."""
    read: list[int] = []
    begun = threading.Event()

    def note(key: int) -> int:
        read.append(key)
        if len(read) == AHEAD:
            begun.set()
        return key * 10

    with ReadAhead(note, range(6)) as ahead:
        assert begun.wait(SECONDS)  # nobody has asked yet
        assert read == list(range(AHEAD))
        assert [ahead.take(key) for key in range(6)] == [0, 10, 20, 30, 40, 50]
    assert read == list(range(6))


def test_an_error_of_the_reading_comes_with_its_own_value() -> None:
    """A damaged tile must not be blamed on the one before, nor get lost."""
    with ReadAhead(lambda key: 1 // key, [2, 1, 0, 1]) as ahead:
        assert (ahead.take(2), ahead.take(1)) == (0, 1)
        with pytest.raises(ZeroDivisionError):
            ahead.take(0)


def test_a_value_out_of_order_is_refused() -> None:
    """The pixels of another tile would be restored in its place."""
    with ReadAhead(lambda key: key, [1, 2]) as ahead, pytest.raises(RuntimeError, match="1 is next"):
        ahead.take(2)


def test_what_is_written_behind_is_written_in_order_and_waited_for() -> None:
    """A block counts as finished when its figures and then its pixels are on the disk."""
    written: list[int] = []
    go = threading.Event()
    with WriteBehind() as behind:
        behind.begin(lambda: (go.wait(SECONDS), written.append(1))[1])  # type: ignore[func-returns-value]
        assert written == []
        go.set()
        behind.begin(lambda: written.append(2))
        assert written[0] == 1
        behind.finish()
        assert written == [1, 2]


def test_a_full_disk_is_told_before_the_end() -> None:
    """An error of the other thread that nobody hears of would name a result with holes."""
    def full() -> None:
        raise OSError(28, "No space left on device")

    with WriteBehind() as behind:
        behind.begin(full)
        with pytest.raises(OSError, match="No space"):
            behind.begin(lambda: None)
        behind.begin(full)
        with pytest.raises(OSError, match="No space"):
            behind.finish()
