"""Drives both plugins through TensorRT's real Python bindings; prints what came of it as JSON.

    python tests/plugins/tensorrt_probe.py STUBS... EMULATED_DRIVER

A process of its own, because the bindings are linked to stubs here. The stubs have no plugin
registry, so one in Python takes its place; expressions of dimensions cannot be made without
the library, so plain numbers stand in for them.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from divprune.plugins import plugin_realisation, register_plugin
from divprune.plugins.driver import Driver
from divprune.plugins.node import NAMESPACE, OP_TYPE, VERSION
from divprune.plugins.ptx import read_ptx
from divprune.plugins.v3_plugin import define_plugin, register_v3_plugin
from divprune.runtime.errors import DivPruneError

PLUGIN_ID = f"{NAMESPACE}::{OP_TYPE}"


class Registry:
    """Creators by name, version and namespace, as TensorRT keeps them."""

    def __init__(self) -> None:
        self.creators: dict[tuple[str, str, str], Any] = {}

    def register_creator(self, creator: Any, namespace: str) -> bool:
        key = (creator.name, creator.plugin_version, namespace)
        assert key not in self.creators
        self.creators[key] = creator
        return True

    def get_creator(self, name: str, version: str, namespace: str) -> Any:
        return self.creators.get((name, version, namespace))


def message(call: Callable[[], Any]) -> str:
    """The message of the error that the call must raise."""
    try:
        call()
    except (DivPruneError, ValueError) as error:
        return str(error)
    raise AssertionError("no error was raised")


# TensorRT owns plugins, and 10.3 crashes where Python lets go of one: none is let go of here.
KEPT_ALIVE: list[Any] = []


def fields(trt: Any, number: np.ndarray, kind: Any) -> Any:
    return trt.PluginFieldCollection([trt.PluginField("max_tokens", number, kind)])


def named(trtp: Any, name: str) -> Any:
    """A dimension that is known by its name only."""
    size = trtp.ShapeExpr()
    size._int_expr, size._is_dummy = name, False
    return size


def probe_aot(trt: Any, registry: Registry) -> dict[str, Any]:
    """The quickly-deployable plugin, in the order in which a build calls it."""
    realisations = [register_plugin(trt), register_plugin(trt)]
    import tensorrt_bindings.plugin as trtp
    from tensorrt_bindings.plugin._lib import QDP_REGISTRY
    from tensorrt_bindings.plugin._tensor import SymIntExpr

    creator = registry.get_creator(OP_TYPE, VERSION, NAMESPACE)
    plugin = creator.create_plugin(
        OP_TYPE,
        NAMESPACE,
        fields(trt, np.array([2928], np.int64), trt.PluginFieldType.INT64),
        trt.TensorRTPhase.BUILD,
        trt.QuickPluginCreationRequest.STRICT_AOT,
    )
    types = plugin.get_output_data_types([trt.float32, trt.int32], [3, 2])
    half = message(lambda: plugin.get_output_data_types([trt.float16, trt.int32], [3, 2]))
    plugin_def, most = QDP_REGISTRY[PLUGIN_ID], plugin.attrs["max_tokens"]

    def described_by(*names: str, dtype: Any) -> Any:
        """A tensor whose dimensions are names: expressions of them come without a value."""
        desc = trtp.TensorDesc(trtp.ShapeExprs(len(names), _is_dummy=True), dtype)
        for index, name in enumerate(names):
            desc.shape_expr._exprs[index] = named(trtp, name)
        return desc

    SymIntExpr._exprBuilder = SimpleNamespace(constant=int, operation=lambda op, a, b: a)
    gram = described_by("images", "tokens", "tokens", dtype=trt.float32)
    seed = described_by("images", "kept", dtype=trt.int32)
    outputs = plugin_def.register_func(gram, seed, most)
    entry, ptx, launch, numbers = plugin_def.aot_impl_func(gram, seed, most, outputs, 0)
    dimensions = [launch.grid_x, launch.grid_y, launch.grid_z]
    dimensions += [launch.block_x, launch.block_y, launch.block_z, launch.shared_mem]

    def misdeclared() -> None:
        @trtp.aot_impl(PLUGIN_ID)
        def wrong(seed, gram, outputs, tactic): ...

    return {
        "realisations": realisations,
        "fields": [(field.name, str(field.type)) for field in creator.field_names],
        "max_tokens": most.tolist(),
        "output_shapes": [[size._expr for size in desc.shape_expr] for desc in outputs],
        "output_types": list(map(str, types)),
        "half": half,
        "entry": entry,
        "ptx_is_ours": ptx == read_ptx(),
        "launch": [dimension._expr for dimension in dimensions],
        "numbers": [number._expr for number in numbers],
        "are_int32": [isinstance(number, trtp.SymInt32) for number in numbers],
        "too_many": message(
            lambda: plugin_def.aot_impl_func(gram, seed, most + 10_000, outputs, 0)
        ),
        "misdeclared": message(misdeclared),
    }


def read_later(collection: Any) -> int:
    """The number of the only field, once memory that nobody holds has been written over."""
    _overwrite = [np.array([-1], np.int32) for _ in range(1000)]
    (field,) = collection
    return int(field.data[0])


def described(trt: Any, shape: tuple[int, ...], kind: Any, layout: Any = None) -> Any:
    desc = trt.PluginTensorDesc()
    desc.dims, desc.type = trt.Dims(shape), kind
    desc.format = layout or trt.TensorFormat.LINEAR
    return desc


def dynamic(trt: Any, desc: Any) -> Any:
    wrapped = trt.DynamicPluginTensorDesc()
    wrapped.desc = desc
    return wrapped


def probe_v3(trt: Any, registry: Registry, driver: Driver) -> dict[str, Any]:
    """The plugin of Python, from the node's attributes to the indices."""
    registry.creators.clear()
    register_v3_plugin(trt)
    registered = registry.get_creator(OP_TYPE, VERSION, NAMESPACE)
    register_v3_plugin(trt)

    creator = define_plugin(trt, driver)
    number = np.array([40], np.int32)
    built = creator.create_plugin(
        "a node", fields(trt, number, trt.PluginFieldType.INT32), trt.TensorRTPhase.BUILD
    )
    given = [["images", "tokens", "tokens"], ["images", "kept"]]
    dims_exprs, trt.DimsExprs = trt.DimsExprs, lambda length: [None] * length
    shapes = built.get_output_shapes(given, [], None)
    trt.DimsExprs = dims_exprs

    descs = [
        described(trt, (2, 40, 40), trt.float32),
        described(trt, (2, 7), trt.int32),
        described(trt, (2, 7), trt.int32),
        described(trt, (2, 7), trt.float32),
    ]
    in_out = [dynamic(trt, desc) for desc in descs]
    formats = [built.supports_format_combination(i, in_out, 2) for i in range(4)]
    in_out[0] = dynamic(trt, described(trt, (2, 40, 40), trt.float16))
    in_out[1] = dynamic(trt, described(trt, (2, 7), trt.int32, trt.TensorFormat.CHW4))
    refused = [built.supports_format_combination(i, in_out, 2) for i in range(2)]

    clone = built.clone()
    serialised = clone.get_fields_to_serialize()
    loaded = creator.create_plugin("", serialised, trt.TensorRTPhase.RUNTIME)
    ran = loaded.attach_to_context(None)
    ran.on_shape_change(descs[:2], descs[2:])
    grams = np.random.default_rng(1).random((2, 40, 40), np.float32)
    seeds = np.repeat(np.array([[3], [39]], np.int32), 7, axis=1)
    order, cover = np.zeros((2, 7), np.int32), np.zeros((2, 7), np.float32)
    inputs = [grams.ctypes.data, seeds.ctypes.data]
    ran.enqueue(descs[:2], descs[2:], inputs, [order.ctypes.data, cover.ctypes.data], 0, 0)

    lone = creator.create_plugin(
        "", fields(trt, number, trt.PluginFieldType.INT32), trt.TensorRTPhase.BUILD
    )
    KEPT_ALIVE.extend([built, clone, loaded, ran, lone])
    large = [described(trt, (1, 41, 41), trt.float32), described(trt, (1, 7), trt.int32)]
    none = trt.PluginFieldCollection([])
    return {
        "registered": type(registered).__name__,
        "fields": [(field.name, str(field.type)) for field in creator.field_names],
        "num_outputs": built.num_outputs,
        "output_types": list(map(str, built.get_output_data_types([trt.float32, trt.int32]))),
        "output_shapes": shapes,
        "serialised": read_later(lone.get_fields_to_serialize()),
        "formats": formats,
        "refused": refused,
        "seeds": seeds[:, 0].tolist(),
        "order": order.tolist(),
        "cover": cover.tolist(),
        "grams": grams.tolist(),
        "large": message(lambda: ran.on_shape_change(large, [])),
        "no_attribute": message(lambda: creator.create_plugin("", none, trt.TensorRTPhase.BUILD)),
    }


def main() -> None:
    *stubs, emulated = sys.argv[1:]
    for stub in stubs:
        ctypes.CDLL(stub, mode=ctypes.RTLD_GLOBAL)
    import tensorrt as trt

    registry = Registry()
    trt.get_plugin_registry = lambda: registry
    report = {
        "version": trt.__version__,
        "aot": probe_aot(trt, registry) if plugin_realisation(trt.__version__) == "aot" else None,
        "v3": probe_v3(trt, registry, Driver(ctypes.CDLL(emulated))),
    }
    print(json.dumps(report), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
