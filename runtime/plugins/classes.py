"""The plugins themselves: one class for all ops, since a `Launch` says how they differ.

The classes derive from those of whichever TensorRT is asked for, so they are made when it is known.

Source: `IPluginV3`, `IPluginCreatorV3One` in the Python API of TensorRT 11 and TensorRT-RTX 1.7.
"""

import functools
import types
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..names import DOMAIN
from .driver import Driver, load_driver, run_launch
from .fields import CODE_FIELD, LAUNCH_FIELD, Fields, fields_from_launch, launch_from_fields
from .launch import PLUGIN_OPS, PLUGIN_VERSION, Launch, Size
from .library import ensure_plugin_library

if TYPE_CHECKING:
    import tensorrt_rtx as api  # `tensorrt` has the same classes

LoadDriver = Callable[[], Driver]


def register_plugins(trt: types.ModuleType, load: LoadDriver = load_driver) -> None:
    """Register our plugins: before a graph with them is parsed, or an engine with them is loaded.

    Args:
        trt: `tensorrt_rtx` or `tensorrt`, imported.
        load: opens the CUDA driver, at the first launch.

    Raises:
        UnsupportedError: the parser would end this process; see `ensure_plugin_library`.
    """
    ensure_plugin_library(trt)
    registry = trt.get_plugin_registry()
    for creator in _kept_creators(trt, load):
        if registry.get_creator(creator.name, PLUGIN_VERSION, DOMAIN) is None:
            registry.register_creator(creator, DOMAIN)


def make_creators(trt: types.ModuleType, load: LoadDriver) -> tuple["LaunchPluginCreator", ...]:
    """Make what makes plugins, one for each of `PLUGIN_OPS`.

    Args:
        trt: `tensorrt_rtx` or `tensorrt`, imported.
        load: opens the CUDA driver, once, when a plugin first needs it.
    """
    driver = functools.cache(load)
    bases = (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime)
    plugin = types.new_class("KernelPlugin", (LaunchPlugin, *bases))
    creator = types.new_class("KernelPluginCreator", (LaunchPluginCreator, trt.IPluginCreatorV3One))
    return tuple(creator(trt, op, plugin, driver) for op in PLUGIN_OPS)


_kept_creators = functools.cache(make_creators)
"""The registry keeps no reference to what is registered."""


class LaunchPluginCreator:
    """Makes plugins of one op, of a node's attributes or a plan's fields alike."""

    def __init__(
        self, trt: types.ModuleType, op: str, plugin_class: type["LaunchPlugin"], driver: LoadDriver
    ) -> None:
        trt.IPluginCreatorV3One.__init__(self)
        self._trt, self._plugin_class, self._driver = trt, plugin_class, driver
        self.name = op
        self.plugin_namespace = DOMAIN
        self.plugin_version = PLUGIN_VERSION
        self.field_names = _fields(trt, Fields(b"", b""))

    def create_plugin(
        self, name: str, fields: "api.PluginFieldCollection", phase: "api.TensorRTPhase"
    ) -> "LaunchPlugin":
        """Make a plugin; both fields are there in both phases."""
        found = {field.name: np.asarray(field.data).tobytes() for field in fields}
        launch = launch_from_fields(Fields(found[LAUNCH_FIELD], found[CODE_FIELD]))
        return self._plugin_class(self._trt, launch, fields_from_launch(launch), self._driver)


class LaunchPlugin:
    """One node: describes its outputs at build, launches its kernel at run time."""

    def __init__(
        self, trt: types.ModuleType, launch: Launch, stored: Fields, driver: LoadDriver
    ) -> None:
        for base in type(self).__mro__:
            if base.__name__.startswith("IPluginV3"):
                base.__init__(self)  # type: ignore[misc]  # pybind11 wants each one called
        self._trt, self._launch, self._driver = trt, launch, driver
        self._stored = stored  # TensorRT reads it in place, after get_fields_to_serialize
        self.plugin_name = launch.op
        self.plugin_namespace = DOMAIN
        self.plugin_version = PLUGIN_VERSION
        self.num_outputs = len(launch.outputs)

    def get_capability_interface(self, kind: "api.PluginCapabilityType") -> "LaunchPlugin":
        """Give this object, which has every capability."""
        return self

    def clone(self) -> "LaunchPlugin":
        """Make an equal plugin."""
        return type(self)(self._trt, self._launch, self._stored, self._driver)

    def get_output_data_types(self, input_types: Sequence["api.DataType"]) -> list["api.DataType"]:
        """Give the types of the outputs."""
        return [getattr(self._trt.DataType, one.dtype) for one in self._launch.outputs]

    def get_output_shapes(
        self,
        inputs: Sequence["api.DimsExprs"],
        shape_inputs: Sequence["api.DimsExprs"],
        builder: "api.IExprBuilder",
    ) -> list["api.DimsExprs"]:
        """Give the shapes of the outputs as expressions of N."""
        num_tokens, shapes = inputs[0][0], []
        for output in self._launch.outputs:
            shape = self._trt.DimsExprs(len(output.shape))
            for axis, size in enumerate(output.shape):
                shape[axis] = self._size(size, num_tokens, builder)
            shapes.append(shape)
        return shapes

    def _size(
        self, size: Size, num_tokens: "api.IDimensionExpr", builder: "api.IExprBuilder"
    ) -> "api.IDimensionExpr":
        if size.per_token == 0:
            return builder.constant(size.constant)
        operation = self._trt.DimensionOperation
        scaled = builder.operation(operation.PROD, num_tokens, builder.constant(size.per_token))
        return builder.operation(operation.SUM, scaled, builder.constant(size.constant))

    def supports_format_combination(
        self, position: int, tensors: Sequence["api.DynamicPluginTensorDesc"], num_inputs: int
    ) -> bool:
        """Take each tensor in its one type, rows beside each other."""
        wanted = (*self._launch.inputs, *(one.dtype for one in self._launch.outputs))
        found = tensors[position].desc
        is_linear = found.format == self._trt.TensorFormat.LINEAR
        return bool(is_linear and found.type == getattr(self._trt.DataType, wanted[position]))

    def configure_plugin(
        self,
        inputs: Sequence["api.DynamicPluginTensorDesc"],
        outputs: Sequence["api.DynamicPluginTensorDesc"],
    ) -> None:
        """Nothing is chosen here: a launch looks at its own N."""

    def get_valid_tactics(self) -> list[int]:
        """There is one way to run."""
        return []

    def set_tactic(self, tactic: int) -> None:
        """There is one way to run."""

    def on_shape_change(
        self, inputs: Sequence["api.PluginTensorDesc"], outputs: Sequence["api.PluginTensorDesc"]
    ) -> None:
        """Nothing depends on shapes but the launch, which sees them."""

    def get_fields_to_serialize(self) -> "api.PluginFieldCollection":
        """Give what the plan keeps."""
        return _fields(self._trt, self._stored)

    def attach_to_context(self, context: "api.IPluginResourceContext") -> "LaunchPlugin":
        """Load the kernels now: while a CUDA graph is recorded it would be too late."""
        driver = self._driver()
        for variant in self._launch.variants:
            driver.load(self._launch.cubin_for(variant, driver.device_sm()))
        return self.clone()

    def enqueue(
        self,
        input_descriptions: Sequence["api.PluginTensorDesc"],
        output_descriptions: Sequence["api.PluginTensorDesc"],
        inputs: Sequence[int],
        outputs: Sequence[int],
        workspace: int,
        stream: int,
    ) -> None:
        """Launch the kernel on the stream."""
        num_tokens = int(input_descriptions[0].dims[0])
        run_launch(self._driver(), self._launch, inputs, outputs, num_tokens, stream)


def _fields(trt: types.ModuleType, fields: Fields) -> "api.PluginFieldCollection":
    kind = trt.PluginFieldType.CHAR
    return trt.PluginFieldCollection(
        [
            trt.PluginField(name, np.frombuffer(value, dtype=np.int8), kind)
            for name, value in ((LAUNCH_FIELD, fields.launch), (CODE_FIELD, fields.code))
        ]
    )
