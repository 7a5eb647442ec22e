from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import pytest

from divprune.runtime.serving.answers.queueing import FairQueue
from divprune.runtime.serving.errors import ApiError


@dataclass(eq=False)
class Work:
    name: str
    abandoned: bool = False


def add(queue: FairQueue[Work], client: str, name: str, cost: int = 0) -> Work:
    work = Work(name)
    queue.commit(queue.reserve(client, cost), work)
    return work


def order(queue: FairQueue[Work]) -> str:
    return " ".join(work.name for work in iter(lambda: queue.take(0.01), None))


def test_clients_take_turns_whatever_they_sent_first() -> None:
    queue: FairQueue[Work] = FairQueue(10, 0)
    for name in ("a1", "a2", "a3", "b1", "c1", "b2"):
        add(queue, name[0], name)
    assert order(queue) == "a1 b1 c1 a2 b2 a3"


def test_full_queue_refuses_with_a_time_to_wait() -> None:
    queue: FairQueue[Work] = FairQueue(2, 0)
    add(queue, "a", "a1")
    add(queue, "b", "b1")
    with pytest.raises(ApiError, match="all places") as caught:
        queue.reserve("c", 0)
    assert caught.value.status == 429
    assert int(caught.value.headers["retry-after"]) >= 1


def test_one_client_alone_cannot_take_the_last_place() -> None:
    queue: FairQueue[Work] = FairQueue(3, 0)
    add(queue, "a", "a1")
    add(queue, "a", "a2")
    with pytest.raises(ApiError, match="last place"):
        queue.reserve("a", 0)
    add(queue, "b", "b1")


def test_single_place_is_for_anybody() -> None:
    queue: FairQueue[Work] = FairQueue(1, 0)
    add(queue, "a", "a1")
    with pytest.raises(ApiError):
        queue.reserve("a", 0)
    queue.take()
    add(queue, "a", "a2")


def test_place_without_work_yet_counts_but_is_not_handed_out() -> None:
    queue: FairQueue[Work] = FairQueue(2, 0)
    place = queue.reserve("a", 0)
    assert len(queue) == 1
    assert queue.take(0.01) is None
    queue.release(place)
    assert len(queue) == 0


def test_pictures_of_all_that_wait_are_bounded_but_one_request_always_fits() -> None:
    queue: FairQueue[Work] = FairQueue(9, 100)
    add(queue, "a", "a1", cost=500)
    with pytest.raises(ApiError, match="memory"):
        queue.reserve("b", 1)
    queue.take()
    queue.reserve("b", 100)


def test_abandoned_work_is_never_handed_out() -> None:
    queue: FairQueue[Work] = FairQueue(9, 0)
    add(queue, "a", "a1").abandoned = True
    add(queue, "a", "a2")
    assert order(queue) == "a2"
    assert len(queue) == 0


def test_next_work_may_be_looked_at_and_stays() -> None:
    queue: FairQueue[Work] = FairQueue(9, 0)
    assert queue.peek() is None
    add(queue, "a", "a1").abandoned = True
    queue.reserve("c", 0)
    work = add(queue, "b", "b1")
    assert queue.peek() is queue.peek() is work
    assert order(queue) == "b1"
    assert queue.peek() is None


def test_released_work_is_never_handed_out() -> None:
    queue: FairQueue[Work] = FairQueue(9, 0)
    place = queue.reserve("a", 0)
    queue.commit(place, Work("a1"))
    add(queue, "a", "a2")
    queue.release(place)
    assert order(queue) == "a2"


def test_closed_queue_hands_out_what_has_a_place_and_gives_no_more() -> None:
    queue: FairQueue[Work] = FairQueue(9, 0)
    late, gone = queue.reserve("b", 0), queue.reserve("c", 0)
    add(queue, "a", "a1")
    queue.close()
    with pytest.raises(ApiError, match="shutting down"):
        queue.reserve("a", 0)
    threading.Timer(0.05, queue.commit, [late, Work("b1")]).start()
    threading.Timer(0.1, queue.release, [gone]).start()
    names = [work.name for work in iter(queue.take, None)]
    assert names == ["a1", "b1"]


def test_drained_queue_hands_out_nothing_and_takes_no_work() -> None:
    queue: FairQueue[Work] = FairQueue(9, 0)
    late = queue.reserve("b", 0)
    work = add(queue, "a", "a1")
    queue.close()
    assert queue.drain() == [work]
    with pytest.raises(ApiError, match="shutting down"):
        queue.commit(late, Work("b1"))
    assert queue.take() is None
    assert len(queue) == 0


def test_time_to_wait_grows_with_the_answers_and_is_bounded() -> None:
    queue: FairQueue[Work] = FairQueue(9, 0)
    for _ in range(50):
        queue.note_duration(10)
    assert 9 <= queue.retry_after() <= 11
    for place in range(8):
        add(queue, str(place), "x")
    assert 36 <= queue.retry_after() <= 41
    for _ in range(50):
        queue.note_duration(1000)
    assert queue.retry_after() == 60


def test_nothing_is_lost_or_doubled_between_threads() -> None:
    queue: FairQueue[Work] = FairQueue(1000, 0)
    taken: list[str] = []

    def send(client: str) -> None:
        for number in range(100):
            add(queue, client, f"{client}{number}")
            time.sleep(0)

    def take() -> None:
        while (work := queue.take()) is not None:
            taken.append(work.name)

    senders = [threading.Thread(target=send, args=(client,)) for client in "abcdefgh"]
    takers = [threading.Thread(target=take) for _ in range(2)]
    for thread in [*senders, *takers]:
        thread.start()
    for thread in senders:
        thread.join()
    queue.close()
    for thread in takers:
        thread.join()
    assert sorted(taken) == sorted(
        f"{client}{number}" for client in "abcdefgh" for number in range(100)
    )
