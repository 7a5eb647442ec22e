"""Who is blamed when a worker dies, with a cluster that loses as much as one can."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from divprune.runtime.serving.batch.handout import Handout
from divprune.runtime.serving.batch.table import Row
from divprune.runtime.serving.batch.worker import failed_answer

ROWS = [Row(f"r{number}", (), "") for number in range(20)]
DEADLY = "r9"


class ActorError(Exception):
    """As Ray's: a worker has died."""


class Actor:
    """Dies once a deadly row is on its way to it; no answer from before comes back then."""

    def __init__(self) -> None:
        self.dies = False
        self.pid = SimpleNamespace(remote=lambda: (self, None))
        self.answer_all = SimpleNamespace(remote=self._answer_all)

    def _answer_all(self, rows: Sequence[Row]) -> tuple[Actor, Sequence[Row]]:
        self.dies |= any(row.key == DEADLY for row in rows)
        return self, rows


def get(reference: tuple[Actor, Sequence[Row] | None]) -> Any:
    actor, rows = reference
    if actor.dies:
        raise ActorError
    return None if rows is None else [failed_answer(row.key, "fine") for row in rows]


def lossy_ray() -> Any:
    names = ("RayActorError", "NodeDiedError", "ObjectLostError", "OutOfMemoryError")
    errors = dict.fromkeys((*names, "WorkerCrashedError"), ActorError)
    return SimpleNamespace(
        exceptions=SimpleNamespace(**errors),
        get=get,
        wait=lambda waiting, timeout: (waiting[:1], waiting[1:]),
    )


def test_only_the_row_that_kills_is_given_up_though_answers_from_before_are_lost() -> None:
    found: list[dict[str, Any]] = []
    Handout(lossy_ray(), iter(ROWS), Actor, 2, found.extend, lambda: None).run()
    errors = {answer["id"]: answer["error"] for answer in found}
    assert len(found) == len(ROWS)
    assert errors.pop(DEADLY) == "its worker died every time"
    assert set(errors.values()) == {"fine"}
    assert set(errors) == {row.key for row in ROWS} - {DEADLY}
