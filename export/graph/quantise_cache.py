"""Put a recipe's cache format into a traced layer: codes, scales and rotated keys in place of rows.

One cache tensor becomes three. New rows are rounded as they are written, each group of a token's
latent with a scale of its own; attention reads what all codes mean. Nothing else changes.
"""

from collections.abc import MutableSequence

import onnx_ir as ir

from runtime import names

from .edits import given
from .quantise import SMALLEST_SCALE

_MOST = 127.0


def quantise_cache(model: ir.Model, *, rank: int, group: int) -> None:
    """Rewrite a traced decoder layer in place.

    Args:
        model: has `cache` (B, 1, T, R + rope), written by one `TensorScatter`.
        rank: R, numbers of the latent; they become int8.
        group: numbers that share a scale; divides R.
    """
    graph = model.graph
    cache = next(value for value in graph.inputs if value.name == names.CACHE)
    (scatter,) = (node for node in graph if node.op_type == "TensorScatter")
    whole = scatter.outputs[0]
    readers = [(node, index) for node, index in whole.uses()]
    rows, lengths = given(scatter.inputs[1]), given(scatter.inputs[2])
    base, width = given(cache.dtype), _size(cache, 3)
    sizes = {names.CACHE: rank, names.CACHE_KEYS: width - rank, names.CACHE_SCALES: rank // group}
    batch, one, cached, _ = given(cache.shape)
    old = {
        name: ir.Value(
            name=name,
            type=ir.TensorType(ir.DataType.INT8 if name == names.CACHE else base),
            shape=ir.Shape([batch, one, cached, size]),
        )
        for name, size in sizes.items()
    }
    tape = ir.tape.Tape()
    new = _rounded_rows(tape, rows, rank=rank, group=group, base=base)
    written = {name: _write(tape, old[name], new[name], lengths) for name in sizes}
    meaning = tape.op(
        "DequantizeLinear",
        [written[names.CACHE], written[names.CACHE_SCALES]],
        {"axis": 3, "block_size": group},
    )
    joined = tape.op("Concat", [meaning, written[names.CACHE_KEYS]], {"axis": -1})
    joined.type, joined.shape = ir.TensorType(base), cache.shape
    graph.insert_before(scatter, tape.nodes)
    for node, index in readers:
        node.replace_input_with(index, joined)
    _exchange(graph.inputs, cache, list(old.values()))
    _exchange(graph.outputs, whole, list(written.values()))
    graph.remove(scatter, safe=True)


def _rounded_rows(
    tape: ir.tape.Tape, rows: ir.Value, *, rank: int, group: int, base: ir.DataType
) -> dict[str, ir.Value]:
    """(B, 1, S, R + rope) as codes (…, R), scales (…, R / group) and keys (…, rope)."""
    start, middle, end = (_numbers(tape, value) for value in (0, rank, 1 << 30))
    last = _numbers(tape, -1)
    latent = tape.op("Slice", [rows, start, middle, last])
    latent.type = ir.TensorType(base)
    keys = tape.op("Slice", [rows, middle, end, last])
    keys.type = ir.TensorType(base)
    groups = tape.op("Reshape", [latent, _numbers(tape, 0, 0, -1, rank // group, group)])
    groups.type = ir.TensorType(base)
    largest = tape.op("ReduceMax", [tape.op("Abs", [groups]), last], {"keepdims": 0})
    wide = tape.op("Cast", [largest], {"to": ir.DataType.FLOAT.value})
    most = tape.op("Constant", [], {"value_float": _MOST})
    tiny = tape.op("Constant", [], {"value_float": SMALLEST_SCALE})
    step = tape.op("Max", [tape.op("Div", [wide, most]), tiny])
    scales = tape.op("Cast", [step], {"to": base.value})
    scales.type = ir.TensorType(base)
    codes = tape.op(
        "QuantizeLinear",
        [latent, scales],
        {"axis": 3, "block_size": group, "output_dtype": ir.DataType.INT8.value},
    )
    codes.type = ir.TensorType(ir.DataType.INT8)
    return {names.CACHE: codes, names.CACHE_SCALES: scales, names.CACHE_KEYS: keys}


def _write(tape: ir.tape.Tape, old: ir.Value, new: ir.Value, lengths: ir.Value) -> ir.Value:
    """Put new rows behind the old ones."""
    written = tape.op("TensorScatter", [old, new, lengths], {"axis": -2, "mode": "linear"})
    written.name = names.output_of(str(old.name))
    written.type, written.shape = old.type, old.shape
    return written


def _exchange(values: MutableSequence[ir.Value], old: ir.Value, new: list[ir.Value]) -> None:
    """Put several inputs or outputs of a graph in the place of one."""
    place = list(values).index(old)
    values[place : place + 1] = new


def _numbers(tape: ir.tape.Tape, *values: int) -> ir.Value:
    return tape.op("Constant", [], {"value_ints": list(values)})


def _size(value: ir.Value, axis: int) -> int:
    size = given(value.shape)[axis]
    if not isinstance(size, int):
        raise RuntimeError(f"{value.name}: axis {axis} has no fixed size")
    return size
