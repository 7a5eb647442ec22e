"""Carries out a build plan: engines, their record, and the move into place."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from divprune.plugins import register_plugin
from divprune.runtime.backends.tensorrt.build.build_engine import TIMING_CACHE, build_engine
from divprune.runtime.backends.tensorrt.engine_record import RECORD_NAME, RECORD_VERSION, EngineRecord
from divprune.runtime.backends.tensorrt.lane_folder import check_free_space, stage_lane
from divprune.runtime.backends.tensorrt.logger_bridge import make_logger
from divprune.runtime.backends.tensorrt.build.selection_choice import LOOP

if TYPE_CHECKING:
    from divprune.runtime.backends.tensorrt.build.build_engine import EngineTask
    from divprune.runtime.backends.tensorrt.build.build_plan import BuildPlan, LanePlan
    from divprune.runtime.backends.tensorrt.build.progress import OnStep

__all__ = ["Watch", "build_engines"]

log = logging.getLogger(__name__)

# Makes a context around the build of one engine; what it gives is told the steps.
Watch = Callable[["EngineTask"], AbstractContextManager["OnStep"]]


def build_engines(plan: BuildPlan, watch: Watch) -> list[Path]:
    """Build what is missing or does not fit.

    Args:
        plan: What to build.
        watch: Shows the progress of each engine.

    Returns:
        The folders that were built; empty where everything was valid.

    Raises:
        BackendError: if an engine cannot be built; what was there before is as it was.
    """
    due = [lane for lane in plan.lanes if lane.problem is not None]
    check_free_space(plan.directory.path, len(due) * plan.graph_bytes())
    for lane in due:
        log.info("building %s: %s", lane.folder, lane.problem.what if lane.problem else "")
        _build_lane(plan, lane, watch)
    return [lane.folder for lane in due]


def _build_lane(plan: BuildPlan, lane: LanePlan, watch: Watch) -> None:
    from divprune.runtime import __version__

    engines, logger = {}, make_logger(plan.library)
    if plan.selection.realisation != LOOP:
        register_plugin(plan.library.module)
    with stage_lane(lane.folder) as folder:
        if not plan.library.is_rtx and (lane.folder / TIMING_CACHE).exists():
            shutil.copy(lane.folder / TIMING_CACHE, folder)
        for task in lane.tasks:
            with watch(task) as on_step:
                built = build_engine(plan.library, logger, plan.directory, task, folder, on_step)
            log.info("%s: %.1f MiB", built.path, built.size / 2**20)
            engines[task.name] = built
        record = EngineRecord(
            record_version=RECORD_VERSION,
            tool_version=__version__,
            surroundings=lane.surroundings,
            options=plan.options,
            selection=plan.selection.realisation,
            engines=engines,
        )
        (folder / RECORD_NAME).write_text(record.to_json(), encoding="utf-8")
