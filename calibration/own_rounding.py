"""What a graph of ONNX Runtime's targets rounds by itself: which values, in blocks of how many.

A recipe may allow it; the graph's nodes say where it happens. A module that does the same is what
such a graph is judged by: without it, an expert chosen in another way would hide every mistake.

Graphs of target `cuda` round nothing that meets codes. They are judged on the CPU's kernels, whose
experts of 8 bits always round.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.graph.edits import given
from export.quantised.codes import LARGEST
from export.quantised.places import places
from runtime.names import (
    BLOCK_EXPERTS,
    BLOCK_LINEAR,
    CPU_DOMAIN,
    MICROSOFT,
    blocks_name,
    parameters_in_blocks,
)

_READ_CODES = (
    (CPU_DOMAIN, BLOCK_LINEAR),
    (CPU_DOMAIN, BLOCK_EXPERTS),
    (MICROSOFT, "MatMulNBits"),
    (MICROSOFT, "QMoE"),
)
_EXPERTS = (BLOCK_EXPERTS, "QMoE")


class OwnRounding(NamedTuple):
    """Rounding in blocks, by parameter that the rounded values meet."""

    blocks: Mapping[str, int]
    replaces: frozenset[str]
    """Parameters where it, or none at all, stands in the place of the recipe's rounding."""


def own_rounding(model: ir.Model, module: nn.Module) -> OwnRounding:
    """Read off a lowered graph what it rounds.

    Args:
        model: of any target; only those of ONNX Runtime round by themselves, or do not round
            where a recipe says so.
        module: the module that the graph was traced from.
    """
    parameters = {place.parameter for place in places(module)}
    blocks: dict[str, int] = {}
    replaces: set[str] = set()
    for node in model.graph:
        if (node.domain, node.op_type) not in _READ_CODES:
            continue
        names = [str(value.name) for value in node.inputs if value]
        found = [one for name in names for one in parameters_in_blocks(name) if one in parameters]
        between = found[1:] if node.op_type in _EXPERTS else []  # their halves
        if _has_shared_experts(node, module, found):
            found += [name for name in parameters if ".shared_experts." in name]
        if _rounds(node):
            blocks |= dict.fromkeys(found, node.attributes["block_size"].as_int())
        replaces |= set(between if _is_rounded(node.inputs[0]) else found)
    return OwnRounding(blocks, frozenset(replaces))


def _has_shared_experts(node: ir.Node, module: nn.Module, found: Sequence[str]) -> bool:
    """Whether an operator reads the shared experts behind the routed ones."""
    if node.op_type == BLOCK_EXPERTS:
        return node.attributes["num_shared"].as_int() > 0
    if node.op_type != "QMoE":
        return False
    codes = next(value for value in node.inputs if value and value.name == blocks_name(found[0]))
    return given(codes.shape).numpy()[0] > module.get_parameter(found[0]).shape[0]


def _rounds(node: ir.Node) -> bool:
    if node.domain == CPU_DOMAIN:
        return True
    return node.op_type == "QMoE" and node.attributes["expert_weight_bits"].as_int() == 8


def _is_rounded(value: ir.Value | None) -> bool:
    """Whether the recipe's rounding is still in front, as that to other formats than int8."""
    producer = None if value is None else value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def round_in_blocks(module: nn.Module, rounding: OwnRounding) -> None:
    """Let a module round as the graph does, behind what it rounds already."""
    for port, size in _ports(module, rounding.blocks):
        module.get_submodule(port).register_forward_pre_hook(
            lambda _, inputs, size=size: (in_blocks(inputs[0], size), *inputs[1:])
        )


def replaced_ports(module: nn.Module, rounding: OwnRounding) -> frozenset[str]:
    """Name the submodules whose input the recipe would round and the graph rounds otherwise."""
    return frozenset(port for port, _ in _ports(module, dict.fromkeys(rounding.replaces, 0)))


def in_blocks(x: Tensor, size: int) -> Tensor:
    """Round (..., K) to int8, blocks of a row each by its largest number / 127.

    Source: the kernels of ONNX Runtime with `accuracy_level` 4.
    """
    padded = F.pad(x, (0, -x.shape[-1] % size))
    blocks = padded.reshape(*x.shape[:-1], -1, size)
    most = blocks.abs().amax(dim=-1, keepdim=True)
    per_step = torch.where(most > 0, LARGEST["int8"] / most, torch.zeros_like(most))
    codes = (blocks * per_step).round()  # dividing by the step decides some ties otherwise
    return (codes * (most / LARGEST["int8"])).reshape(padded.shape)[..., : x.shape[-1]]


def _ports(module: nn.Module, blocks: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Give each submodule once whose input meets one of the parameters."""
    done = set()
    for place in places(module):
        if place.parameter in blocks and place.port is not None and place.port not in done:
            done.add(place.port)
            yield place.port, blocks[place.parameter]
