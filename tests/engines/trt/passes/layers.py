"""Graphs with random weights: traced, quantised, lowered, run by ONNX Runtime.

Weights are random and their scales fit them; the neutral graph in ONNX Runtime is the reference.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from engines.cpu.passes.compute_in_fp32 import ComputeInFloat32
from engines.cpu.passes.widen_fp4 import WidenFP4
from engines.lowering import Lowered, lower
from engines.trt.passes import LoweringOptions, passes
from export.graph.quantise import input_scale_name, quantise_graph, scale_name, whole_name
from export.graph.weights_file import bind_weights, write_weights
from export.graphs import DTYPES, plan_graphs
from export.quantised.codes import ONNX_TYPES as CODE_TYPES
from export.quantised.codes import to_bytes
from export.quantised.matrix import quantise, scales_for
from export.quantised.scales_file import GraphScales
from export.quantised.storage import quantised_inputs, quantised_places, stored_step
from export.recipe.reading import parse_recipe
from export.recipe.recipe import Recipe
from export.trace import trace
from runtime.config import KimiVLConfig

Array = NDArray[Any]

CONFIG = KimiVLConfig.load(Path("examples/nano/checkpoint/config.json"))
"""16 experts of which 2 are chosen; all sizes are multiples of 32."""
DENSE, MOE = 0, 1
"""Layers by kind."""
MAX_TOKENS = 160
INPUT_SCALE = {"int8": 0.03, "fp8": 0.01, "nvfp4": 0.002}
"""Of everything that is rounded; values of these layers are below 4."""
_DECODER = ("attention", "dense_mlp", "experts", "shared_experts")
_REST = ("vision", "projector", "head")
_PLACES = {"vision": 0, "projector": 1, "layer": 2, "head": 3}
"""Of each graph in the plan of one layer."""


def recipe(base: str, weights: str = "", activations: str = "", scale: str = "static") -> Recipe:
    """One format for all matrices; 4 bits for those of decoder layers only."""
    lines = [f'base = "{base}"']
    rest = _REST if weights in ("int8", "fp8") else ()
    for part in (*_DECODER, *rest) if weights else ():
        lines += [f"[parts.{part}]", f'weights = "{weights}"']
        lines += ["group = 32"] if weights == "int4" else []
        lines += [f'activations = "{activations}"'] if activations else []
        lines += [f'scale = "{scale}"'] if activations in ("int8", "fp8") else []
    return parse_recipe("\n".join(lines), "test", "test")


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Bytes of one tensor; satisfies `weights_file.Values`."""

    name: str
    dtype: ir.DataType
    shape: tuple[int, ...]
    content: bytes

    def blocks(self) -> Iterator[bytes]:
        yield self.content


@cache
def _traced(base: str, graph: str, layer: int) -> tuple[torch.nn.Module, ir.Model]:
    plan = plan_graphs(CONFIG, DTYPES[base], [layer], taps=False)[_PLACES[graph]]
    module = plan.build()
    return module, trace(module, plan.spec)


def write_layer(
    folder: Path, form: Recipe, *, graph: str = "layer", layer: int = MOE, seed: int = 0
) -> Path:
    """Write a neutral layer, or another graph, and its weights file; return the graph's path."""
    module, traced = _traced(form.base, graph, layer)
    random = torch.Generator().manual_seed(seed)
    values = {name: _random(name, value, random) for name, value in module.named_parameters()}
    forms = {place.parameter: (place, part) for place, part in quantised_places(module, form)}
    found = {
        name: scales_for(values[name], part.weights, DTYPES[form.base])
        for name, (_, part) in forms.items()
    }
    stored: list[Stored] = []
    for name, value in values.items():
        if name not in forms:
            stored.append(_plain(name, value.to(module.get_parameter(name).dtype)))
            continue
        place, part = forms[name]
        codes = part.weights.codes
        content = bytes(to_bytes(quantise(value, found[name], part.weights), codes))
        shape = tuple(value.shape)
        stored.append(Stored(name=name, dtype=CODE_TYPES[codes], shape=shape, content=content))
        stored.append(_plain(scale_name(name), stored_step(found[name], part.weights)))
        whole = found[name].whole
        stored += [] if whole is None else [_plain(whole_name(name), whole)]
        if part.activations and place.port and place.reads_with == name:
            step = torch.tensor(INPUT_SCALE[part.activations.codes])
            wide = part.activations.codes == "nvfp4"
            step = step if wide else step.to(DTYPES[form.base])
            stored.append(_plain(input_scale_name(name), step))
    model = traced.clone()
    quantise_graph(model, quantised_inputs(module, form, GraphScales(weights=found)))
    (folder / "weights").mkdir(parents=True, exist_ok=True)
    location = f"weights/layer_{seed}.bin"
    write_weights(folder / location, stored)
    bind_weights(model.graph, stored, location)
    path = folder / f"layer_{seed}.onnx"
    path.write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))
    return path


def _random(name: str, parameter: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    values = torch.randn(parameter.shape, generator=random)
    if values.dim() == 1:
        return 0.1 * values if "bias" in name else 1 + 0.1 * values
    scaled: torch.Tensor = values * float(values.shape[-2]) ** -0.5
    return scaled


def _plain(name: str, value: torch.Tensor) -> Stored:
    dtype = {
        torch.float32: ir.DataType.FLOAT,
        torch.float16: ir.DataType.FLOAT16,
        torch.bfloat16: ir.DataType.BFLOAT16,
        torch.float8_e4m3fn: ir.DataType.FLOAT8E4M3FN,
    }[value.dtype]
    content = value.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
    return Stored(name=name, dtype=dtype, shape=tuple(value.shape), content=content)


def lowered(path: Path, options: LoweringOptions) -> ir.Model:
    """Lower a neutral graph."""
    return lower(ir.load(path), passes(options)).model


def embed(model: ir.Model) -> ir.Model:
    """Turn weights that are inputs back into initialisers that lie in their files."""
    graph = model.graph
    for value in [value for value in graph.inputs if value.const_value is not None]:
        graph.inputs.remove(value)
        graph.initializers.add(value)
    return model


def run(model: ir.Model, folder: Path, inputs: dict[str, Array]) -> list[Array]:
    """Run a graph in ONNX Runtime, in fp32 where that has no kernels; inputs are fp32.

    Args:
        model: changed; its weights are initialisers in files.
        folder: of the graph.
        inputs: those that the graph does not have are left out.
    """
    wide = lower(model, [ComputeInFloat32(), WidenFP4()])
    _fill_in(wide)
    model = wide.model
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(folder)
    )
    content = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    wanted = {one.name for one in session.get_inputs()}
    outputs = session.run(None, {name: value for name, value in inputs.items() if name in wanted})
    return [np.asarray(output) for output in outputs]


def _fill_in(wide: Lowered) -> None:
    """Give weights that a pass made their values, in memory."""
    for made in wide.new_weights:
        content = b"".join(bytes(block) for block in made.blocks())
        numbers = np.frombuffer(content, dtype=made.dtype.numpy()).reshape(made.shape)
        wide.model.graph.initializers[made.name].const_value = ir.tensor(numbers, name=made.name)


def example(tokens: int, lengths: tuple[int, ...], seed: int = 6) -> dict[str, Array]:
    """Make inputs of a layer: S new tokens behind `lengths` older ones, rows everywhere."""
    random = np.random.default_rng(seed)
    slots, width = len(lengths), CONFIG.decoder.latent_width
    return {
        "hidden": random.standard_normal((slots, tokens, CONFIG.decoder.width), np.float32),
        "cache": random.standard_normal((slots, 1, MAX_TOKENS, width), np.float32),
        "lengths": np.array(lengths),
        "window": np.zeros(max(lengths) + tokens, np.int32),
    }


def relative_error(found: Array, expected: Array) -> float:
    """max|a - b| / max|b|."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())
