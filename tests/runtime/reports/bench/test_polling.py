from __future__ import annotations

import threading
import time

from divprune.runtime.reports.bench.polling import polling


def test_it_calls_again_and_again_in_another_thread_and_then_no_more():
    threads: list[int] = []
    with polling(lambda: threads.append(threading.get_ident()), 0.001):
        deadline = time.monotonic() + 10
        while len(threads) < 3 and time.monotonic() < deadline:
            time.sleep(0.001)
    seen = len(threads)
    assert seen >= 3
    assert threading.get_ident() not in threads
    time.sleep(0.02)
    assert len(threads) == seen


def test_the_end_does_not_wait_for_the_pause():
    start = time.monotonic()
    with polling(lambda: None, 60):
        pass
    assert time.monotonic() - start < 30
