"""Real TensorRT-RTX engines with all four plugins, built on a machine without a device."""

import functools
from types import ModuleType
from typing import NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.kernels.attributes import plugin_attributes
from engines.kernels.ops import grouped_down_op, grouped_up_op, router_op, sort_op
from engines.kernels.specs import ExpertFormat, ExpertSizes
from export.graph.functions import OPSET, neutral_functions
from runtime.names import DOMAIN, ROUTER
from runtime.plugins.classes import register_plugins
from runtime.plugins.launch import PLUGIN_OPS

from .test_experts import make_form

pytest.importorskip("triton")
SIZES = ExpertSizes(width=128, inner=64, num_experts=8, num_chosen=3)
TYPES = {
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
    "int8": TensorProto.INT8,
    "int4": TensorProto.INT4,
    "fp8": TensorProto.FLOAT8E4M3FN,
}
BITS = {"fp16": 16, "bf16": 16, "int8": 8, "int4": 4, "fp8": 8}
CASES = [
    ("fp16", "fp16", 0, (89,)),
    ("fp16", "int8", 0, (89, 120)),
    ("bf16", "int4", 32, (89, 120)),
    ("bf16", "fp8", 0, (89,)),
]

Attributes = dict[str, dict[str, str]]


class Built(NamedTuple):
    plan: bytes
    layers: list[str]
    complaints: list[str]


@pytest.fixture(scope="module")
def trt() -> ModuleType:
    module = pytest.importorskip("tensorrt_rtx")
    register_plugins(module)
    return module  # type: ignore[no-any-return]  # a module


@functools.cache
def routing_attributes(sms: tuple[int, ...]) -> Attributes:
    ops = (router_op(SIZES, scale=2.5, normalize=True), sort_op(SIZES))
    return {op.op: plugin_attributes(op, sms) for op in ops}


@functools.cache
def expert_attributes(form: ExpertFormat, sms: tuple[int, ...]) -> Attributes:
    ops = (grouped_up_op(SIZES, form), grouped_down_op(SIZES, form))
    return {op.op: plugin_attributes(op, sms) for op in ops}


def make_tensor(name: str, kind: str, shape: list[int]) -> onnx.TensorProto:
    """Draw a tensor's bytes; none of them makes a NaN."""
    rng = np.random.default_rng(len(name))
    drawn = rng.integers(0, 60, int(np.prod(shape)) * BITS[kind] // 8, dtype=np.uint8)
    return onnx.TensorProto(name=name, data_type=TYPES[kind], dims=shape, raw_data=drawn.tobytes())


def expert_weights(form: ExpertFormat) -> list[onnx.TensorProto]:
    weights = []
    for name, num_in, num_out in (("gate", 128, 64), ("up", 128, 64), ("down", 64, 128)):
        weights.append(make_tensor(name, form.codes, [8, num_in, num_out]))
        if form.weights is not None:
            groups = num_in // (form.group or num_in)
            weights.append(make_tensor(f"{name}_scale", form.base, [8, groups, num_out]))
    return weights


def make_model(form: ExpertFormat, attributes: Attributes, *, are_inputs: bool) -> onnx.ModelProto:
    def node(op: str, inputs: list[str], outputs: list[str], **own: float) -> onnx.NodeProto:
        made = helper.make_node(op, inputs, outputs, name=op, domain=DOMAIN)
        known = {**attributes[op], **own}
        made.attribute.extend(helper.make_attribute(*one) for one in known.items())
        return made

    weights = expert_weights(form)
    lifting = [one.name for one in weights if not one.name.startswith("down")]
    lowering = [one.name for one in weights if one.name.startswith("down")]
    pairs = ["order", "starts"]
    nodes = [
        node(
            ROUTER, ["hidden", "weight", "bias"], ["experts", "scores"], k=3, scale=2.5, normalize=1
        ),
        node("SortByExpert", ["experts"], pairs),
        helper.make_node("Cast", ["hidden"], ["rows"], to=TYPES[form.base]),
        node("GroupedUp", ["rows", "experts", *pairs, *lifting], ["inner"]),
        node("GroupedDown", ["inner", "scores", *pairs, *lowering], ["parts"]),
        helper.make_node("ReduceSum", ["parts", "axis"], ["mixed"], keepdims=0),
    ]
    value = helper.make_tensor_value_info
    inputs = [value("hidden", TensorProto.FLOAT, ["N", 128])]
    inputs += [value("weight", TensorProto.FLOAT, [128, 8]), value("bias", TensorProto.FLOAT, [8])]
    constants = [numpy_helper.from_array(np.array([1]), "axis")]
    if are_inputs:
        inputs += [value(one.name, one.data_type, list(one.dims)) for one in weights]
    else:
        constants += weights
    output = value("mixed", TYPES[form.base], ["N", 128])
    graph = helper.make_graph(nodes, "routed", inputs, [output], constants)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    router = ir.serde.serialize_function(neutral_functions()[ROUTER])
    return helper.make_model(graph, opset_imports=opsets, functions=[router])


def build(trt: ModuleType, model: onnx.ModelProto, sms: tuple[int, ...]) -> Built:
    complaints: list[str] = []

    class Listener(trt.ILogger):  # type: ignore[name-defined,misc]  # known at run time
        def log(self, severity: int, message: str) -> None:
            if severity <= trt.ILogger.WARNING:
                complaints.append(message)

    logger = Listener()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(model.SerializeToString()), complaints
    config = builder.create_builder_config()
    config.num_compute_capabilities = len(sms)
    for index, sm in enumerate(sms):
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), index)
    profile = builder.create_optimization_profile()
    profile.set_shape("hidden", (1, 128), (8, 128), (4096, 128))
    config.add_optimization_profile(profile)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    plugins = [layer.name for layer in layers if layer.type == trt.LayerType.PLUGIN_V3]
    plan = builder.build_serialized_network(network, config)
    assert plan is not None, complaints
    return Built(bytes(plan), plugins, complaints)


@pytest.mark.parametrize("are_inputs", [True, False])
@pytest.mark.parametrize(("base", "codes", "group", "sms"), CASES)
def test_an_engine_holds_all_four_plugins_with_their_kernels(
    trt: ModuleType, base: str, codes: str, group: int, sms: tuple[int, ...], are_inputs: bool
) -> None:
    form = make_form(base, codes, group)
    attributes = {**routing_attributes(sms), **expert_attributes(form, sms)}
    model = make_model(form, attributes, are_inputs=are_inputs)
    built = build(trt, model, sms)
    assert built.layers == list(PLUGIN_OPS)  # the router's function body did not win
    assert built.complaints == []
    for op, kept in attributes.items():
        header, code = kept["launch"].encode(), kept["code"].encode()
        # Each copy of a header is followed by its code: fields that were freed too early are not.
        assert built.plan.count(header) == built.plan.count(code) > 0, op
    for weight in expert_weights(form):
        assert (weight.raw_data in built.plan) is not are_inputs
    assert build(trt, model, sms).plan == built.plan


def test_a_node_with_damaged_kernels_does_not_parse(trt: ModuleType) -> None:
    form = make_form("fp16", "fp16", 0)
    attributes = {**routing_attributes((89,)), **expert_attributes(form, (89,))}
    damaged = {**attributes, "GroupedUp": {**attributes["GroupedUp"], "code": "short"}}
    with pytest.raises(AssertionError, match="Could not create the plugin"):
        build(trt, make_model(form, damaged, are_inputs=True), (89,))
