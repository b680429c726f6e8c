"""Real builds of lowered graphs."""

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from engines.trt.builder import BuiltPlan, build_plan
from engines.trt.home import Home
from engines.trt.network import ParsedNetwork, parse_network
from engines.trt.profiles import ShapeRange, Shapes
from engines.trt.sm import parse_target
from runtime.names import CACHE, HIDDEN, LENGTHS, WINDOW
from runtime.plugins.classes import register_plugins

from .layers import CONFIG, MAX_TOKENS

SLOTS = 2


def layer_shapes(tokens: int, caches: Sequence[str] = (CACHE,)) -> Shapes:
    """Shapes of a layer for up to S tokens of up to two slots."""
    width, row = CONFIG.decoder.width, CONFIG.decoder.latent_width

    def slots(*rest: int) -> ShapeRange:
        return ShapeRange((1, *rest), (1, *rest), (SLOTS, *rest))

    shapes = {
        HIDDEN: ShapeRange((1, 1, width), (1, tokens, width), (SLOTS, tokens, width)),
        LENGTHS: slots(),
        WINDOW: ShapeRange((1,), (MAX_TOKENS // 2,), (MAX_TOKENS,)),
    }
    return shapes | {name: slots(1, MAX_TOKENS, row) for name in caches}


def save(model: ir.Model, folder: Path, name: str = "lowered") -> Path:
    """Write a graph beside its weights."""
    path = folder / f"{name}.onnx"
    path.write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))
    return path


def parse(home: Home, model: ir.Model, folder: Path) -> ParsedNetwork:
    """Parse a graph as TensorRT-RTX does."""
    register_plugins(home.trt)
    return parse_network(home, save(model, folder))


def build(
    home: Home, model: ir.Model, folder: Path, profiles: Sequence[Shapes], target: str = "rtx:sm89"
) -> BuiltPlan:
    """Parse a graph and build it for a target."""
    parsed = parse(home, model, folder)
    return build_plan(parsed, parse_target(target), profiles, folder / "lowered.plan")
