"""Small ONNX files for real builds, and the plans made of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, parser

from engines.trt.builder import BuiltPlan, build_plan
from engines.trt.home import Home
from engines.trt.network import parse_network
from engines.trt.profiles import ShapeRange, Shapes
from engines.trt.sm import parse_target

HEADER = '<ir_version: 12, opset_import: ["": 24, "trt": 1, "kimivl": 1]>\n'
WIDTH, OUT = 64, 32
ROWS: list[Shapes] = [{"x": ShapeRange((1, WIDTH), (4, WIDTH), (8, WIDTH))}]

Weights = Mapping[str, NDArray[Any] | TensorProto]


def save_graph(path: Path, text: str, weights: Weights | None = None) -> Path:
    """Write a graph in ONNX's text form with its initialisers."""
    model = parser.parse_model(HEADER + text)
    for name, values in (weights or {}).items():
        is_made = isinstance(values, TensorProto)
        model.graph.initializer.append(values if is_made else numpy_helper.from_array(values, name))
    onnx.save(model, path)
    return path


def narrow(name: str, kind: int, values: NDArray[Any]) -> TensorProto:
    """Make an initialiser of a type that numpy lacks; 4-bit ones are all zero."""
    types: dict[int, Any] = {
        TensorProto.BFLOAT16: ml_dtypes.bfloat16,
        TensorProto.FLOAT8E4M3FN: ml_dtypes.float8_e4m3fn,
    }
    raw = values.astype(types[kind]).tobytes() if kind in types else bytes(values.size // 2)
    return helper.make_tensor(name, kind, values.shape, raw, raw=True)


def build(
    home: Home, graph: Path, target: str = "rtx:sm89", profiles: Sequence[Shapes] | None = None
) -> BuiltPlan:
    """Parse and build; the plan goes beside the graph."""
    parsed = parse_network(home, graph)
    given = ROWS if profiles is None else profiles
    return build_plan(parsed, parse_target(target), given, graph.with_suffix(".plan"))


def linear(tmp_path: Path, dtype: str = "float16") -> Path:
    """Save one product in a plain type, with its weights in the file."""
    values = np.random.default_rng(0).standard_normal((WIDTH, OUT))
    weights: NDArray[Any] | TensorProto = values.astype({"float": "float32"}.get(dtype, "float16"))
    if dtype == "bfloat16":
        weights = narrow("w", TensorProto.BFLOAT16, values)
    text = f"g ({dtype}[N, {WIDTH}] x) => ({dtype}[N, {OUT}] y) {{ [proj] y = MatMul(x, w) }}"
    return save_graph(tmp_path / f"linear_{dtype}.onnx", text, {"w": weights})


def quantised(tmp_path: Path, codes: str, *, rounds: bool) -> Path:
    """Save one product with weights in `int8` or `fp8`, one scale for each output.

    Args:
        tmp_path: where.
        codes: type of the codes.
        rounds: whether the other operand is rounded to the same type.
    """
    kind = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}[codes]
    body = "[unround] wide = DequantizeLinear <axis = 1> (w, w_scale)\n"
    if rounds:
        body += "[round] q = QuantizeLinear (x, scale, zero)\n"
        body += "d = DequantizeLinear (q, scale, zero)\n"
    body += f"[proj] y = MatMul ({'d' if rounds else 'x'}, wide)"
    ones = np.ones((WIDTH, OUT), np.int8)
    weights: dict[str, NDArray[Any] | TensorProto] = {
        "w": ones if codes == "int8" else narrow("w", kind, ones),
        "w_scale": np.full(OUT, 0.5, np.float16),
    }
    if rounds:
        zero = np.zeros((), np.int8)
        weights["zero"] = zero if codes == "int8" else narrow("zero", kind, zero)
        weights["scale"] = np.array(0.25, np.float16)
    text = f"g (float16[N, {WIDTH}] x) => (float16[N, {OUT}] y) {{ {body} }}"
    return save_graph(tmp_path / f"{codes}.onnx", text, weights)


def int4(tmp_path: Path) -> Path:
    """Save one product with INT4 weights in groups of 32."""
    text = f"""g (float16[N, {WIDTH}] x) => (float16[N, {OUT}] y) {{
        wide = DequantizeLinear <axis = 0, block_size = 32> (w, w_scale)
        [proj] y = MatMul (x, wide)
    }}"""
    weights: dict[str, NDArray[Any] | TensorProto] = {
        "w": narrow("w", TensorProto.INT4, np.zeros((WIDTH, OUT))),
        "w_scale": np.ones((WIDTH // 32, OUT), np.float16),
    }
    return save_graph(tmp_path / "int4.onnx", text, weights)


def nvfp4(tmp_path: Path) -> Path:
    """Save one product in NVFP4: scales of 16 inputs in FP8, times one number."""
    text = f"""g (float16[N, {WIDTH}] x) => (float16[N, {OUT}] y) {{
        [round] q, s = trt.TRT_FP4DynamicQuantize <axis=-1, block_size=16, scale_type=17> (x, whole)
        step = DequantizeLinear (s, whole)
        d = DequantizeLinear <axis = -1, block_size = 16> (q, step)
        w_step = DequantizeLinear (w_scale, whole)
        wide = DequantizeLinear <axis = 0, block_size = 16> (w, w_step)
        [proj] y = MatMul (d, wide)
    }}"""
    scales = np.ones((WIDTH // 16, OUT))
    weights: dict[str, NDArray[Any] | TensorProto] = {
        "w": narrow("w", TensorProto.FLOAT4E2M1, np.zeros((WIDTH, OUT))),
        "w_scale": narrow("w_scale", TensorProto.FLOAT8E4M3FN, scales),
        "whole": np.array(0.1, np.float16),
    }
    return save_graph(tmp_path / "nvfp4.onnx", text, weights)


def attention(tmp_path: Path, head_size: int, dtype: str = "float16") -> Path:
    """Save attention of 2 heads over one shared head of 8 cached tokens, with a mask."""
    text = f"""g ({dtype}[1, 2, S, {head_size}] q, {dtype}[1, 1, 8, {head_size}] k,
                  bool[1, 1, S, 8] mask) => ({dtype}[1, 2, S, {head_size}] y) {{
        [attend] y = Attention (q, k, k, mask)
    }}"""
    return save_graph(tmp_path / "attention.onnx", text)


def attention_shapes(head_size: int) -> list[Shapes]:
    """Give the profile of `attention`: 1 to 4 new tokens."""
    return [
        {
            "q": ShapeRange(*((1, 2, tokens, head_size) for tokens in (1, 2, 4))),
            "mask": ShapeRange(*((1, 1, tokens, 8) for tokens in (1, 2, 4))),
        }
    ]
