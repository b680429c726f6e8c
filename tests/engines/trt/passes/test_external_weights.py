"""Weights as inputs: one graph for all layers of a kind, and every byte bound where it lies."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from engines.trt.passes import LoweringOptions, weight_inputs
from engines.trt.passes.options import ExpertsForm, WeightsPlace

from .layers import DENSE, MAX_TOKENS, MOE, lowered, recipe, write_layer

RECIPES = {
    "plain": recipe("bf16"),
    "int8": recipe("bf16", "int8", "int8"),
    "int4 by fp8": recipe("bf16", "int4", "fp8"),
    "nvfp4": recipe("bf16", "nvfp4", "nvfp4"),
}


def options(form: ExpertsForm, weights: WeightsPlace = "external") -> LoweringOptions:
    return LoweringOptions(max_tokens=MAX_TOKENS, sms=(120,), experts=form, weights=weights)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(("layer", "form"), [(DENSE, "dense"), (MOE, "dense"), (MOE, "gather")])
def test_layers_of_a_kind_are_one_graph(
    layer: int, name: str, form: ExpertsForm, tmp_path: Path
) -> None:
    paths = [write_layer(tmp_path, RECIPES[name], layer=layer, seed=seed) for seed in (0, 1)]
    first, second = (lowered(path, options(form)) for path in paths)
    assert ir.to_proto(first) == ir.to_proto(second)
    bound = [weight_inputs(model) for model in (first, second)]
    assert {one.location for one in bound[0]} == {"weights/layer_0.bin"}
    assert {one.location for one in bound[1]} == {"weights/layer_1.bin"}
    assert [one.name for one in bound[0]] == [one.name for one in bound[1]]


@pytest.mark.parametrize("form", ["gather", "dense"])
@pytest.mark.parametrize("name", RECIPES)
def test_every_weight_is_bound_to_the_bytes_that_the_neutral_graph_reads(
    name: str, form: ExpertsForm, tmp_path: Path
) -> None:
    path = write_layer(tmp_path, RECIPES[name])
    neutral = ir.load(path).graph.initializers
    model = lowered(path, options(form))
    bound = weight_inputs(model)
    content = (tmp_path / "weights" / "layer_0.bin").read_bytes()
    for one in bound:
        stored = neutral[one.name.removesuffix(".bytes")].const_value
        assert stored is not None
        assert content[one.offset : one.offset + one.length] == stored.tobytes()
        bits = int(np.prod(one.shape)) * int(one.dtype.bitwidth)
        assert one.length == bits // 8
    stored_names = {
        weight
        for weight, value in neutral.items()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    assert {one.name.removesuffix(".bytes") for one in bound} == stored_names
    types = {value.name: (value.dtype, value.shape) for value in model.graph.inputs}
    assert all(types[one.name] == (one.dtype, ir.Shape(one.shape)) for one in bound)


def test_only_what_all_layers_share_stays_in_the_graph(tmp_path: Path) -> None:
    model = lowered(write_layer(tmp_path, RECIPES["int4 by fp8"]), options("gather"))
    sizes = {name: value.const_value for name, value in model.graph.initializers.items()}
    named = {name for name in sizes if not name.startswith("val_")}
    assert named == {"self_attn.frequencies", "int4_numbers_bfloat16"}


def test_embedded_weights_stay_constants(tmp_path: Path) -> None:
    model = lowered(write_layer(tmp_path, RECIPES["int8"]), options("dense", "embedded"))
    assert [value.name for value in model.graph.inputs] == ["hidden", "cache", "lengths", "window"]
    assert "mlp.experts.gate_proj" in model.graph.initializers
    assert weight_inputs(model) == ()
