"""Build ONNX files with the real TensorRT-RTX compiler, which needs no GPU and no driver.

Its parser is TensorRT's own; no other part of TensorRT is in the package index. Nothing built
here is run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from divprune.runtime.directory.manifest import LIVE_SLOTS

__all__ = ["BuildFailed", "Profile", "Range", "build_engine"]

# A range (shortest, typical, longest) of the only dimension that varies, the sequence; or of
# each that does, by name.
Range = tuple[int, int, int]
Profile = Range | Mapping[str, Range]


class BuildFailed(AssertionError):
    """The parser or the builder refused a graph; the message lists why."""


def build_engine(path: Path, compute_capability: int, profiles: Sequence[Profile] = ()) -> bytes:
    """Parse ``path``, strongly typed, and build it for a GPU that need not be there.

    Raises:
        BuildFailed: with every error of the parser, or what the builder said.
    """
    trt: Any = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is for Linux")
    logger = _make_logger(trt)
    builder = trt.Builder(logger)
    strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strongly_typed)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        raise BuildFailed("\n".join([str(path), *map(_describe, _errors(parser))]))
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{compute_capability}"), 0)
    for profile in profiles:
        config.add_optimization_profile(_make_profile(builder, network, profile))
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildFailed("\n".join([str(path), *logger.problems]))
    return bytes(plan)


def _make_logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.problems: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.problems.append(message)

    return Logger()


def _errors(parser: Any) -> list[Any]:
    return [parser.get_error(index) for index in range(parser.num_errors)]


def _describe(error: Any) -> str:
    return f"{error.node_name()} ({error.node_operator()}): {error.desc()}"


def _make_profile(builder: Any, network: Any, lengths: Profile) -> Any:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if -1 in tuple(tensor.shape):
            sizes = lengths
            if tensor.name == LIVE_SLOTS and not isinstance(lengths, Mapping):
                sizes = (1, 128, _capacity(network))
            ranges = [_range(tensor, axis, sizes) for axis in range(len(tensor.shape))]
            profile.set_shape(tensor.name, *map(list, zip(*ranges, strict=True)))
    return profile


def _range(tensor: Any, axis: int, lengths: Profile) -> Range:
    size = tensor.shape[axis]
    if size != -1:
        return size, size, size
    return lengths[tensor.get_dimension_name(axis)] if isinstance(lengths, Mapping) else lengths


def _capacity(network: Any) -> int:
    """Slots of the cache that the network reads."""
    inputs = (network.get_input(index) for index in range(network.num_inputs))
    return next(int(t.shape[2]) for t in inputs if t.name.startswith("past_key_"))
