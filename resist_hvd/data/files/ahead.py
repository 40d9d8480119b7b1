"""Taking from an iterator in a thread of its own, so that what it makes is there before it is asked for."""

import atexit
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Generic, TypeVar

import torch

from resist_hvd.data.side_stream import SideStream

T = TypeVar("T")


class Ahead(Iterator[T], Generic[T]):
    """The items of an iterator in their order, the next one made while the caller does other things.

    What the iterator raises is raised here in its turn.

    Args:
        items: taken from in the thread alone, from now on.
        stream: where they are made; by default in no stream of its own.
    """

    def __init__(self, items: Iterator[T], stream: SideStream | None = None) -> None:
        self._items = items
        self._stream = stream or SideStream(torch.device("cpu"))
        self._made: SimpleQueue[Callable[[], T] | _End] = SimpleQueue()
        self._wanted = threading.Semaphore(1)
        self._stopped = False
        self._thread = threading.Thread(target=self._make, name="making batches", daemon=True)
        self._thread.start()
        # A process that ends while a library works in this thread may crash.
        atexit.register(self.close)

    def _make(self) -> None:
        try:
            with self._stream.making():
                try:
                    self._make_each()
                finally:
                    # Whatever the iterator holds it lets go of here, in the thread that it was used in.
                    del self._items
        except BaseException as error:
            self._made.put(_End(error))

    def _make_each(self) -> None:
        while True:
            self._wanted.acquire()
            if self._stopped:
                break
            self._made.put(self._stream.made(next(self._items)))

    def __next__(self) -> T:
        made = self._made.get()
        if isinstance(made, _End):
            self._made.put(made)
            raise made.error
        self._wanted.release()
        return made()

    def close(self) -> None:
        """Stop, and wait until the item that is under way is made."""
        self._stopped = True
        self._wanted.release()
        self._thread.join()
        self._made.put(_End(StopIteration()))
        atexit.unregister(self.close)


class _End:
    """Stands in the queue for what ended the iterator."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
