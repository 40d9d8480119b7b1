"""Items that are made in advance, in a thread."""

import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator

import pytest

from resist_hvd.data.files.ahead import Ahead


def test_all_items_come_in_their_order_and_then_the_end() -> None:
    ahead = Ahead(iter(range(50)))
    assert list(ahead) == list(range(50))
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(ahead)
    ahead.close()


def test_the_next_item_is_made_without_being_asked_for_and_no_more_than_one() -> None:
    made: list[int] = []
    one_more = threading.Semaphore(0)

    def items() -> Iterator[int]:
        for number in range(10):
            made.append(number)
            one_more.release()
            yield number

    ahead = Ahead(items())
    assert one_more.acquire(timeout=60)
    assert made == [0]
    assert next(ahead) == 0
    assert one_more.acquire(timeout=60)
    assert made == [0, 1]
    ahead.close()
    assert made == [0, 1]


def test_an_error_comes_in_its_turn_and_again() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("the second is broken")

    ahead = Ahead(items())
    assert next(ahead) == 1
    for _ in range(2):
        with pytest.raises(ValueError, match="the second is broken"):
            next(ahead)
    ahead.close()


def test_closing_ends_the_thread_and_lets_the_iterator_go() -> None:
    class Held:
        def __iter__(self) -> Iterator[int]:
            return self

        def __next__(self) -> int:
            return 1

    held = Held()
    gone = weakref.ref(held)
    before = threading.active_count()
    ahead = Ahead(held)
    del held
    assert next(ahead) == 1
    ahead.close()
    assert threading.active_count() == before
    assert gone() is None
    assert len(list(ahead)) <= 1


def test_a_process_may_end_without_closing() -> None:
    program = """
import time
from resist_hvd.data.files.ahead import Ahead

def items():
    try:
        while True:
            time.sleep(0.01)
            yield 1
    finally:
        print("let go")

print(next(Ahead(items())))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout == "1\nlet go\n"
    assert done.stderr == ""
