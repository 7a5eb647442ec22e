"""From an ONNX file to a TensorRT network, with every complaint of the parser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from divprune.runtime.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from divprune.runtime.backends.tensorrt.library import TensorRT
    from divprune.runtime.directory.manifest import GraphSpec, TensorSpec

__all__ = ["parse_graph"]


def parse_graph(
    library: TensorRT, builder: Any, logger: Any, path: Path, spec: GraphSpec, *, fix: str
) -> Any:
    """Parse a graph into a strongly typed network.

    Args:
        library: TensorRT or TensorRT-RTX.
        builder: Its builder.
        logger: From ``make_logger``.
        path: The ONNX file; its external data lies beside it.
        spec: What the manifest says about it.
        fix: What to do where the parser refuses it.

    Returns:
        The network and the parser, which owns the weights and must live as long.

    Raises:
        BackendError: if the parser refuses the graph or read another one than the manifest
            describes.
    """
    trt = library.module
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        errors = [_describe(parser.get_error(index)) for index in range(parser.num_errors)]
        raise BackendError(
            f"{library.title} refuses {spec.path}",
            expected=f"a graph of opset {spec.opset} with operators that it knows",
            found="\n            ".join(errors or logger.errors() or ["no reason given"]),
            fix=fix,
        )
    _check_names(spec.path, "inputs", spec.inputs, _tensors(network, "input"))
    _check_names(spec.path, "outputs", spec.outputs, _tensors(network, "output"))
    return network, parser


def _describe(error: Any) -> str:
    """``node 12 /layer/Attention (Attention): what is wrong``."""
    name, operator = error.node_name(), error.node_operator()
    node = f"node {error.node()}" + (f" {name}" if name else "")
    return f"{node} ({operator or 'graph'}): {' '.join(str(error.desc()).split())}"


def _tensors(network: Any, kind: str) -> list[str]:
    count = getattr(network, f"num_{kind}s")
    return [getattr(network, f"get_{kind}")(index).name for index in range(count)]


def _check_names(path: str, kind: str, specs: Iterable[TensorSpec], found: Iterable[str]) -> None:
    expected = sorted(spec.name for spec in specs)
    if expected != sorted(found):
        raise BackendError(
            f"{path} is not the graph that manifest.json describes",
            expected=f"{kind} {', '.join(expected)}",
            found=", ".join(sorted(found)),
            fix="export the model again with divprune-export",
        )
