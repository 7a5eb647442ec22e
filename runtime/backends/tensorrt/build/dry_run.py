"""A build plan as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from divprune.runtime.backends.tensorrt.engine_record import ENGINES

if TYPE_CHECKING:
    from divprune.runtime.backends.tensorrt.build.build_plan import BuildPlan, LanePlan

__all__ = ["describe_plan"]

_WIDTH = 16


def describe_plan(plan: BuildPlan) -> str:
    """Describe the engines to be built, their GPU and limits; several lines."""
    manifest, workspace = plan.directory.manifest, plan.options.workspace_bytes >> 20
    lines = [
        _line("engine directory", str(plan.directory.path)),
        _line("library", f"{plan.library.title}, graphs of dialect {manifest.dialect}"),
        _line("selection", f"{plan.selection.realisation} ({plan.selection.reason})"),
        _line("builder memory", f"{workspace} MiB of workspace, beside the weights"),
    ]
    if plan.options.weight_streaming:
        lines.append(_line("weights", "may stay in host memory (weight streaming)"))
    for lane in plan.lanes:
        lines += _lane_lines(plan, lane)
    return "\n".join(lines)


def _lane_lines(plan: BuildPlan, lane: LanePlan) -> list[str]:
    target = lane.surroundings
    device = target.device_name or "ahead of time, without that GPU"
    state = "valid, nothing to do"
    if lane.problem is not None:
        state = f"to build: {lane.problem.what}"
    lines = [
        "",
        _line(f"{ENGINES}/{target.lane}", ""),
        _line("  for", f"compute capability {target.compute_capability} ({device})"),
        _line("  state", state),
    ]
    for task in lane.tasks:
        path = plan.directory.manifest.graphs[task.graph].path
        profiles = ", ".join(map(str, task.profiles)) or "static shapes"
        lines.append(_line(f"  {task.name}", f"{path}: {profiles}"))
    return lines


def _line(label: str, text: str) -> str:
    return f"{label:<{_WIDTH}}  {text}".rstrip()
