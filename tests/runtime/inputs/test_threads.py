"""Parts of a picture in several threads."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from divprune.runtime.inputs import threads
from divprune.runtime.inputs.threads import run_each


def test_results_come_in_the_order_of_the_items() -> None:
    assert run_each(lambda item: item**2, range(100)) == [item**2 for item in range(100)]


def test_two_items_are_worked_on_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_cores", lambda: 2)
    both = threading.Barrier(2, timeout=10)
    run_each(lambda _: both.wait(), range(2))


def test_one_core_needs_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_cores", lambda: 1)
    here = threading.get_ident()
    assert run_each(lambda _: threading.get_ident(), range(3)) == [here] * 3


def test_error_of_an_item_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        run_each(lambda item: 1 // item, [1, 0])


def squares() -> list[int]:
    return run_each(lambda item: item**2, range(4))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_forked_child_has_threads_of_its_own() -> None:
    squares()
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as child:
        assert child.submit(squares).result(timeout=30) == [0, 1, 4, 9]
