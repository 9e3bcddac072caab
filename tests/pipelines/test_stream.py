from __future__ import annotations

import gc
import threading
import time
import weakref

import pytest

from gigavim.pipelines.stream import reader_pool, stream


class Counter:
    """Counts what is submitted and not yet taken."""

    def __init__(self) -> None:
        self.given = 0

    def items(self, n: int):
        for item in range(n):
            self.given += 1
            yield item


class Reader:
    """Reads, as an image does that is open."""

    def __call__(self, item: int) -> int:
        return item


NOTED: list[int] = []


def slow_first(item: int) -> int:
    time.sleep(0.05 if item == 0 else 0)
    return item * item


def fail_on_two(item: int) -> int:
    if item == 2:
        raise OSError("gone")
    return item


def note(item: int) -> int:
    NOTED.append(item)
    time.sleep(0.02)
    return item


def thread_name(_: int) -> str:
    time.sleep(0.01)
    return threading.current_thread().name


def test_results_come_in_the_order_of_the_items() -> None:
    with reader_pool(2) as client:
        assert list(stream(client, slow_first, range(20), ahead=4)) == [i * i for i in range(20)]


def test_no_more_than_ahead_items_are_in_flight() -> None:
    counter = Counter()
    with reader_pool(2) as client:
        for taken, _ in enumerate(stream(client, slow_first, counter.items(30), ahead=3)):
            assert counter.given - taken <= 3


def test_an_error_in_a_task_reaches_the_caller_as_it_is() -> None:
    with reader_pool(1) as client, pytest.raises(OSError, match="gone"):
        list(stream(client, fail_on_two, range(5), ahead=2))


def test_tasks_run_beside_the_caller() -> None:
    with reader_pool(2) as client:
        names = set(stream(client, thread_name, range(8), ahead=4))
    assert threading.current_thread().name not in names
    assert len(names) == 2


def test_a_run_that_ends_in_an_error_leaves_nothing_for_the_next_to_wait_for() -> None:
    def interrupted() -> None:
        with reader_pool(1) as client:
            for _ in stream(client, note, range(100), ahead=100):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    begun = len(NOTED)
    with reader_pool(1) as client:
        assert list(stream(client, note, [-1], ahead=1)) == [-1]
    assert NOTED[-1] == -1
    assert len(NOTED) <= begun + 2


def test_what_was_read_with_is_not_held() -> None:
    reader = Reader()
    held = weakref.ref(reader)
    with reader_pool(1) as client:
        assert list(stream(client, reader, range(3), ahead=2)) == [0, 1, 2]
    del reader
    for _ in range(100):  # Dask forgets a task a moment after its caller
        if held() is None:
            break
        gc.collect()
        time.sleep(0.05)
    assert held() is None


def test_pools_of_two_sizes_are_made_once_each() -> None:
    lent = []
    for threads in (1, 2, 1, 2):
        with reader_pool(threads) as client:
            lent.append(client)
    assert lent[0] is lent[2]
    assert lent[1] is lent[3]


def test_a_fault_in_the_loop_of_dask_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    done = threading.Event()

    def fails() -> None:
        client.loop.add_callback(done.set)
        raise NameError("future")  # As a wait does that Ctrl-C reaches before it began.

    with reader_pool(1) as client:
        client.loop.add_callback(fails)
        assert done.wait(10)
    assert not caplog.records
