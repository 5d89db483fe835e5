"""Background work in a thread: the next items of an iterator, or a single result that is needed later."""

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from typing import TypeVar

Item = TypeVar("Item")


def run_in_background(make: Callable[[], Item]) -> Callable[[], Item]:
    """Start `make` in a daemon thread, which does not delay the program's exit.

    Returns:
        A function that waits for the result, or raises the exception of `make`.
    """
    future: Future[Item] = Future()

    def work() -> None:
        try:
            future.set_result(make())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future.result


def prefetch(items: Iterator[Item], depth: int) -> Generator[Item, None, None]:
    """Yield the items in order, up to `depth` of them made ahead in a thread; 0 makes none ahead and uses no thread.

    An exception from making an item is raised in that item's turn. Closing the iterator ends the thread.
    """
    if not depth:
        yield from items
        return
    made: queue.Queue = queue.Queue(depth)
    has_ended = threading.Event()

    def put(entry) -> bool:
        while not has_ended.is_set():
            try:
                made.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def make() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((None, StopIteration()))
        except BaseException as error:
            put((None, error))

    thread = threading.Thread(target=make, name="collating ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        has_ended.set()
        thread.join()
