"""A layer with an int8 cache, run by stock ONNX Runtime, against numpy and the plain layer."""

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray

from calibration.scales.rounding import round_latent
from export.graph.functions import OPSET, neutral_functions
from export.graph.quantise_cache import quantise_cache
from export.quantised.table import rounded_rows, row_scales
from runtime import names

Array = NDArray[Any]

RANK, ROPE, HEADS = 32, 8, 3
LENGTHS = np.array([5, 0, 2])
NUM_NEW, CAPACITY = 2, 9
TOLERANCE = 1e-6
"""Of the largest output: sums of 40 products in fp32."""

LAYER = f"""
<ir_version: 10, opset_import: ["" : {OPSET}, "{names.DOMAIN}" : 1]>
layer (float[B, S, {HEADS}, {RANK + ROPE}] query, float[B, 1, S, {RANK + ROPE}] rows,
       float[B, 1, T, {RANK + ROPE}] cache, int64[B] lengths)
    => (float[B, S, {HEADS}, {RANK}] mixed, float[B, 1, T, {RANK + ROPE}] cache_out) {{
    cache_out = TensorScatter <axis: int = -2, mode: string = "linear"> (cache, rows, lengths)
    mixed = {names.DOMAIN}.{names.LATENT_ATTENTION}
        <rank: int = {RANK}, scale: float = 0.25> (query, cache_out, lengths)
}}"""


def layer() -> ir.Model:
    model = ir.serde.deserialize_model(onnx.parser.parse_model(LAYER))
    function = neutral_functions()[names.LATENT_ATTENTION]
    model.functions[function.identifier()] = function
    return model


def run(model: ir.Model, inputs: dict[str, Array]) -> dict[str, Array]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(proto.SerializeToString(), options)
    outputs = [value.name for value in session.get_outputs()]
    return dict(zip(outputs, session.run(None, inputs), strict=True))


def normal(*shape: int, seed: int) -> Array:
    """Values whose groups differ in size, as those of a latent do."""
    values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return values * np.exp(np.linspace(-2, 2, shape[-1], dtype=np.float32))


def codes_and_scales(rows: Array, group: int) -> tuple[Array, Array]:
    """The definition: the largest of a group is 127 steps."""
    groups = rows[..., :RANK].reshape(*rows.shape[:-1], RANK // group, group)
    scales = (np.abs(groups).max(axis=-1) / np.float32(127)).astype(np.float32)
    codes = np.round(groups / scales[..., None]).astype(np.int8)
    return codes.reshape(*rows.shape[:-1], RANK), scales


@pytest.mark.parametrize("group", [16, 32])
def test_new_rows_are_rounded_and_all_else_stays(group: int) -> None:
    batch = len(LENGTHS)
    rows = normal(batch, 1, NUM_NEW, RANK + ROPE, seed=1)
    query = normal(batch, NUM_NEW, HEADS, RANK + ROPE, seed=2)
    random = np.random.default_rng(3)
    old: dict[str, Array] = {
        names.CACHE: random.integers(-127, 128, (batch, 1, CAPACITY, RANK), dtype=np.int8),
        names.CACHE_KEYS: random.standard_normal((batch, 1, CAPACITY, ROPE), dtype=np.float32),
        names.CACHE_SCALES: random.uniform(0.01, 0.1, (batch, 1, CAPACITY, RANK // group)).astype(
            np.float32
        ),
    }
    model = layer()
    quantise_cache(model, rank=RANK, group=group)
    found = run(model, {"query": query, "rows": rows, "lengths": LENGTHS, **old})

    codes, scales = codes_and_scales(rows, group)
    new: dict[str, Array] = {
        names.CACHE: codes,
        names.CACHE_KEYS: rows[..., RANK:],
        names.CACHE_SCALES: scales,
    }
    for name, values in old.items():
        expected = values.copy()
        for slot, length in enumerate(LENGTHS):
            expected[slot, :, length : length + NUM_NEW] = new[name][slot]
        np.testing.assert_array_equal(found[names.output_of(name)], expected)

    written = {name: found[names.output_of(name)].astype(np.float32) for name in old}
    groups = written[names.CACHE].reshape(*written[names.CACHE_SCALES].shape, group)
    latents = (groups * written[names.CACHE_SCALES][..., None]).reshape(batch, 1, CAPACITY, RANK)
    whole = np.concatenate([latents, written[names.CACHE_KEYS]], axis=-1)
    last = {"rows": whole[:, :, :0], "cache": whole, "query": query, "lengths": LENGTHS}
    expected = run(layer(), last)["mixed"]
    error = np.abs(found["mixed"] - expected).max() / np.abs(expected).max()
    assert error <= TOLERANCE


def test_inputs_and_outputs_stand_in_the_order_of_the_manifest() -> None:
    model = layer()
    quantise_cache(model, rank=RANK, group=16)
    caches = [names.CACHE, names.CACHE_KEYS, names.CACHE_SCALES]
    assert caches == sorted(caches)  # a manifest sorts its keys
    assert [value.name for value in model.graph.inputs] == ["query", "rows", *caches, "lengths"]
    assert [value.name for value in model.graph.outputs] == [
        "mixed",
        *(names.output_of(name) for name in caches),
    ]


def test_a_group_of_zeros_stays_zero() -> None:
    model = layer()
    quantise_cache(model, rank=RANK, group=16)
    shapes = {names.CACHE: (RANK, np.int8), names.CACHE_KEYS: (ROPE, np.float32)}
    shapes[names.CACHE_SCALES] = (RANK // 16, np.float32)
    old = {name: np.zeros((1, 1, 4, width), dtype) for name, (width, dtype) in shapes.items()}
    inputs = {
        "query": normal(1, 1, HEADS, RANK + ROPE, seed=4),
        "rows": np.zeros((1, 1, 1, RANK + ROPE), np.float32),
        "lengths": np.array([0]),
    }
    found = run(model, {**inputs, **old})
    assert (found[names.output_of(names.CACHE)] == 0).all()
    assert (found["mixed"] == 0).all()


@pytest.mark.parametrize("group", [16, 32])
def test_the_module_rounds_as_the_graph_does(group: int) -> None:
    rows = normal(2, 1, 7, RANK + ROPE, seed=5)
    codes, scales = codes_and_scales(rows, group)
    groups = codes.reshape(*scales.shape, group) * scales[..., None]
    expected = np.concatenate([groups.reshape(codes.shape), rows[..., RANK:]], axis=-1)
    found = round_latent(torch.from_numpy(rows), RANK, group).numpy()
    np.testing.assert_array_equal(found, expected)


def test_rows_of_the_embedding_table_are_the_nearest_of_255_values() -> None:
    table = np.concatenate([normal(50, 24, seed=6), np.zeros((1, 24), np.float32)])
    table = table.astype(ml_dtypes.bfloat16).astype(np.float32)
    scales = np.abs(table).max(axis=1, keepdims=True) / np.float32(127)
    rows = torch.from_numpy(table)
    np.testing.assert_array_equal(row_scales(rows).numpy()[:-1], scales[:-1])
    steps = np.where(scales == 0, 1, scales)
    grid = np.arange(-127, 128, dtype=np.float32)
    nearest = np.abs(table[..., None] / steps[..., None] - grid).argmin(axis=-1)
    np.testing.assert_array_equal(rounded_rows(rows).numpy(), grid[nearest] * scales)
