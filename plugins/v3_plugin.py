"""The plugin for TensorRT 10.3 to 10.8 (JetPack 6): Python launches the kernel.

The process that runs the engine needs this module as well: ``register_plugin`` comes before
the engine is deserialised.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from divprune.plugins.driver import Driver, GreedyMaxMinKernel
from divprune.plugins.node import NAMESPACE, OP_TYPE, VERSION, check_shapes
from divprune.runtime.errors import BackendError, OptionError

__all__ = ["define_plugin", "register_v3_plugin"]

_FIELD = "max_tokens"
_SEED, _ORDER = 1, 2
"""Places of the integers among inputs and outputs: gram, seed, order, cover."""
_registered: list[Any] = []  # for the life of the process: TensorRT may keep no reference


def register_v3_plugin(tensorrt: ModuleType) -> None:
    """Register ``divprune::GreedyMaxMin`` with TensorRT, once a process."""
    registry = tensorrt.get_plugin_registry()
    if registry.get_creator(OP_TYPE, VERSION, NAMESPACE) is not None:
        return
    creator = define_plugin(tensorrt)
    if not registry.register_creator(creator, NAMESPACE):
        raise BackendError(f"TensorRT refused the plugin {NAMESPACE}::{OP_TYPE}")
    _registered.append(creator)


class _Kernels:
    """The kernel loaded once for each CUDA context that runs it."""

    def __init__(self, driver: Driver | None) -> None:
        self._driver = driver
        self._loaded: dict[int | None, GreedyMaxMinKernel] = {}

    def current(self) -> GreedyMaxMinKernel:
        """The kernel for the context that is current."""
        self._driver = self._driver or Driver()
        context = self._driver.current_context()
        if context not in self._loaded:
            self._loaded[context] = GreedyMaxMinKernel(self._driver)
        return self._loaded[context]


def define_plugin(trt: Any, driver: Driver | None = None) -> Any:
    """The plugin's creator: its classes derive from those of the TensorRT at hand.

    Args:
        trt: The imported ``tensorrt``.
        driver: What launches the kernel; libcuda, loaded at the first launch, by default.
    """
    kernels = _Kernels(driver)

    class GreedyMaxMin(  # type: ignore[misc, unused-ignore]
        trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime
    ):
        """One node: N and K come with the shapes."""

        def __init__(self, max_tokens: int) -> None:
            for base in GreedyMaxMin.__bases__:
                base.__init__(self)
            self.plugin_name, self.plugin_version = OP_TYPE, VERSION
            self.plugin_namespace = NAMESPACE
            self.num_outputs = 2
            self.timing_cache_id = ""
            self.max_tokens = max_tokens
            # TensorRT reads what a field points to after the call that returns it.
            self._number = np.array([max_tokens], np.int32)
            field = trt.PluginField(_FIELD, self._number, trt.PluginFieldType.INT32)
            self._fields = trt.PluginFieldCollection([field])

        def get_capability_interface(self, kind: Any) -> Any:
            return self

        def get_output_data_types(self, input_types: Any) -> list[Any]:
            return [trt.int32, trt.float32]

        def get_output_shapes(self, inputs: Any, shape_inputs: Any, builder: Any) -> list[Any]:
            # Both are as long as the row of first tokens.
            outputs = [trt.DimsExprs(2), trt.DimsExprs(2)]
            for output in outputs:
                output[0], output[1] = inputs[_SEED][0], inputs[_SEED][1]
            return outputs

        def supports_format_combination(self, pos: int, in_out: Any, num_inputs: int) -> bool:
            wanted = trt.int32 if pos in (_SEED, _ORDER) else trt.float32
            desc = in_out[pos].desc
            return bool(desc.type == wanted and desc.format == trt.TensorFormat.LINEAR)

        def configure_plugin(self, inputs: Any, outputs: Any) -> None:
            pass

        def on_shape_change(self, inputs: Any, outputs: Any) -> None:
            gram, seed = (tuple(desc.dims) for desc in inputs)
            check_shapes(gram, seed, self.max_tokens)

        def enqueue(
            self,
            input_desc: Any,
            output_desc: Any,
            inputs: list[int],
            outputs: list[int],
            workspace: int,
            stream: int,
        ) -> None:
            gram, seed = (tuple(desc.dims) for desc in input_desc)
            num_images, num_tokens, num_kept = check_shapes(gram, seed, self.max_tokens)
            kernels.current().launch(
                *inputs,
                *outputs,
                num_tokens=num_tokens,
                num_kept=num_kept,
                num_images=num_images,
                stream=stream,
            )

        def attach_to_context(self, context: Any) -> Any:
            return self.clone()

        def get_fields_to_serialize(self) -> Any:
            return self._fields

        def clone(self) -> Any:
            return GreedyMaxMin(self.max_tokens)

    class Creator(trt.IPluginCreatorV3One):  # type: ignore[misc, unused-ignore]
        """Makes the plugin from the node's attributes, or from the engine's."""

        def __init__(self) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_version = OP_TYPE, VERSION
            self.plugin_namespace = NAMESPACE
            self._number = np.array([], np.int32)
            field = trt.PluginField(_FIELD, self._number, trt.PluginFieldType.INT32)
            self.field_names = trt.PluginFieldCollection([field])

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            return GreedyMaxMin(_max_tokens(fields))

    return Creator()


def _max_tokens(fields: Any) -> int:
    for field in fields:
        if field.name == _FIELD:
            return int(np.asarray(field.data).ravel()[0])
    raise OptionError(f"The node {OP_TYPE} lacks an attribute", expected=_FIELD)
