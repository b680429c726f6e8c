"""Layers joined into one graph compute what they compute one after the other."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from engines.passes.chain_layers import chain_layers
from engines.trt.passes import LoweringOptions, weight_inputs
from runtime.names import CACHE, place_name
from tests.engines.trt.passes.layers import (
    DENSE,
    MAX_TOKENS,
    MOE,
    embed,
    example,
    lowered,
    recipe,
    run,
    write_layer,
)

OPTIONS = LoweringOptions(max_tokens=MAX_TOKENS, sms=(89,), experts="gather")


def test_a_chain_gives_what_its_layers_give_one_after_the_other(tmp_path: Path) -> None:
    kinds = (DENSE, MOE, MOE)
    paths = [
        write_layer(tmp_path, recipe("fp32", "int4"), layer=layer, seed=seed)
        for seed, layer in enumerate(kinds)
    ]
    inputs = example(4, (6, 0))
    hidden, caches = inputs["hidden"], []
    for path in paths:
        hidden, cache = run(embed(lowered(path, OPTIONS)), tmp_path, {**inputs, "hidden": hidden})
        caches.append(cache)
    chain = embed(chain_layers([lowered(path, OPTIONS) for path in paths], "chain"))
    own = {place_name(place, CACHE): inputs[CACHE] for place in range(len(kinds))}
    found = run(chain, tmp_path, inputs | own)
    for joined, single in zip(found, [hidden, *caches], strict=True):
        assert np.array_equal(joined, single)


def test_chains_of_the_same_kinds_are_one_graph(tmp_path: Path) -> None:
    seeds = [(0, 1), (2, 3)]
    chains = [
        chain_layers(
            [lowered(write_layer(tmp_path, recipe("bf16"), seed=seed), OPTIONS) for seed in pair],
            "chain",
        )
        for pair in seeds
    ]
    assert ir.to_proto(chains[0]) == ir.to_proto(chains[1])
    places = [
        {one.name: one.location for one in weight_inputs(chain)}["1.mlp.gate.weight"]
        for chain in chains
    ]
    assert places == ["weights/layer_1.bin", "weights/layer_3.bin"]


def test_layers_with_other_bodies_are_not_joined(tmp_path: Path) -> None:
    form = recipe("bf16", "nvfp4", "nvfp4")
    dense = LoweringOptions(max_tokens=MAX_TOKENS, sms=(120,), experts="dense")
    layers = [lowered(write_layer(tmp_path, form, seed=seed), dense) for seed in (0, 1)]
    (body,) = layers[1].functions.values()
    body.graph[0].attributes["to"] = ir.AttrInt64("to", ir.DataType.DOUBLE.value)
    with pytest.raises(RuntimeError, match="another body of TRT_FP4DynamicQuantize"):
        chain_layers(layers, "chain")
