"""Attention over an int8 cache, cut out of traced layers: the same numbers, in the same memory."""

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from engines.cpu.passes.cache_attention import CacheAttention
from engines.cpu.passes.compute_in_fp32 import ComputeInFloat32
from engines.cpu.passes.region import Region, cut_out
from engines.lowering import lower
from export.graph.quantise_cache import quantise_cache
from export.graphs import DTYPES, plan_graphs
from export.trace import trace
from runtime import names
from runtime.names import CACHED_ATTENTION
from tests.engines.passes.coded_graphs import Array, op_types
from tests.engines.trt.passes.layers import CONFIG

DECODER = CONFIG.decoder
GROUP = 32
MAX_TOKENS = 24
LAYER = f"""RMSNormalization MatMul MatMul {CACHED_ATTENTION} MatMul Add RMSNormalization
    MatMul Sigmoid Mul MatMul Mul MatMul Add"""
"""A dense layer, besides casts of weights."""


def traced_layer(base: str, *, has_codes: bool = True, seed: int = 0) -> ir.Model:
    """A dense layer with random weights."""
    plan = plan_graphs(CONFIG, DTYPES[base], [0], taps=False)[2]
    module = plan.build()
    model = trace(module, plan.spec)
    if has_codes:
        quantise_cache(model, rank=DECODER.latent_rank, group=GROUP)
    random = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        value = torch.randn(parameter.shape, generator=random)
        value = 1 + 0.1 * value if value.dim() == 1 else value * value.shape[-2] ** -0.5
        raw = value.to(parameter.dtype).contiguous().view(torch.uint8).numpy()
        dtype = ir.DataType.FLOAT if base == "fp32" else ir.DataType.BFLOAT16
        numbers = raw.view(dtype.numpy()).reshape(value.shape)
        model.graph.initializers[name].const_value = ir.tensor(numbers, name=name)
    return model


def session(model: ir.Model) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    content = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def feeds(lengths: list[int], tokens: int) -> dict[str, Array]:
    random, slots = np.random.default_rng(1), len(lengths)
    rank, rope = DECODER.latent_rank, DECODER.latent_width - DECODER.latent_rank
    rows = (slots, 1, MAX_TOKENS)
    return {
        names.HIDDEN: random.standard_normal((slots, tokens, DECODER.width), np.float32),
        names.CACHE: random.integers(-127, 128, (*rows, rank), dtype=np.int8),
        names.CACHE_KEYS: random.standard_normal((*rows, rope), np.float32),
        names.CACHE_SCALES: random.uniform(0.01, 0.03, (*rows, rank // GROUP)).astype(np.float32),
        names.LENGTHS: np.array(lengths),
    }


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def layers(request: pytest.FixtureRequest) -> tuple[ir.Model, ir.Model]:
    """A layer before and after."""
    before = lower(traced_layer(request.param), [ComputeInFloat32()]).model
    return before, lower(before.clone(), [CacheAttention(may_round=True)]).model


@pytest.mark.parametrize(("lengths", "tokens"), [([7], 1), ([0], 5), ([3, 11, 0], 4), ([23, 5], 1)])
def test_attention_cut_out_gives_the_same_numbers(
    layers: tuple[ir.Model, ir.Model], lengths: list[int], tokens: int
) -> None:
    given = feeds(lengths, tokens)
    before, after = (session(model).run(None, given) for model in layers)
    assert len(before) == len(after) == 4
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_node_has_what_its_kernel_reads(layers: tuple[ir.Model, ir.Model]) -> None:
    (node,) = (node for node in layers[1].graph if node.op_type == CACHED_ATTENTION)
    heads, rank = DECODER.num_heads, DECODER.latent_rank
    shapes = [value.shape for value in node.inputs if value is not None]
    assert shapes[2:6] == [
        (rank,),
        (heads, DECODER.nope_size, rank),
        (heads, rank, DECODER.value_size),
        (DECODER.rope_size // 2,),
    ]
    stored = [value.is_initializer() for value in node.inputs if value is not None]
    assert stored[3:6] == [True, True, True]
    last = [value.name for value in node.inputs if value is not None][6:]
    assert last == [names.CACHE, names.CACHE_KEYS, names.CACHE_SCALES, names.LENGTHS]
    assert node.attributes["scale"].as_float() == pytest.approx(DECODER.query_size**-0.5)
    assert node.attributes["epsilon"].as_float() == pytest.approx(1e-6)
    outputs = [value.name for value in layers[1].graph.outputs]
    assert [value.name for value in node.outputs][1:] == outputs[1:]
    assert [kind for kind in op_types(layers[1]) if kind != "Cast"] == LAYER.split()


def test_the_cache_is_written_in_place(layers: tuple[ir.Model, ir.Model]) -> None:
    given = feeds([3, 11], 2)
    expected = session(layers[0]).run(None, given)
    values: dict[str, Any] = {
        name: ort.OrtValue.ortvalue_from_numpy(array.copy()) for name, array in given.items()
    }
    engine = session(layers[1])
    binding = engine.io_binding()
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    binding.bind_output(names.HIDDEN_OUT)
    kept = (names.CACHE, names.CACHE_KEYS, names.CACHE_SCALES)
    for name in kept:
        binding.bind_ortvalue_output(names.output_of(name), values[name])
    engine.run_with_iobinding(binding)
    np.testing.assert_array_equal(binding.get_outputs()[0].numpy(), expected[0])
    for name, array in zip(kept, expected[1:], strict=True):
        np.testing.assert_array_equal(values[name].numpy(), array)


def test_a_layer_with_a_plain_cache_stays() -> None:
    model = traced_layer("fp32", has_codes=False)
    before = op_types(model)
    assert op_types(lower(model, [CacheAttention(may_round=True)]).model) == before


def test_a_region_must_name_all_that_it_reads() -> None:
    model = traced_layer("fp32")
    outputs = [model.graph.outputs[0]]
    region = Region(inputs={}, outputs=outputs, stand_ins={}, attributes={})
    with pytest.raises(RuntimeError, match="is not among the inputs of the region"):
        cut_out(model, region, "kimivl.cpu", "Everything")


def test_only_the_shape_of_a_stand_in_may_be_read() -> None:
    model = traced_layer("fp32")
    graph = model.graph
    hidden = next(value for value in graph.inputs if value.name == names.HIDDEN)
    others = {str(value.name): value for value in graph.inputs if value is not hidden}
    region = Region(
        inputs=others,
        outputs=[graph.outputs[0]],
        stand_ins={hidden: others[names.CACHE_KEYS]},
        attributes={},
    )
    with pytest.raises(RuntimeError, match="more than the shape of hidden is read"):
        cut_out(model, region, "kimivl.cpu", "Everything")
