"""Every form of the experts in every number format means what the neutral graph means.

Both are run in fp32 by ONNX Runtime, whatever they are stored in, so that all that differs is the
order of sums. A value that is rounded to another code because of that would be seen as 1e-3; with
these seeds there is none.
"""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from engines.lowering import lower
from engines.trt.passes import LoweringOptions, passes, plugin_experts
from engines.trt.passes.gathered_bodies import byte_table
from engines.trt.passes.options import ExpertsForm
from runtime.errors import UnsupportedError
from runtime.names import DOMAIN
from runtime.plugins.launch import PLUGIN_OPS

from .layers import (
    DENSE,
    MAX_TOKENS,
    MOE,
    embed,
    example,
    lowered,
    recipe,
    relative_error,
    run,
    write_layer,
)

TOLERANCE = 1e-5
"""Of the largest output: sums of up to 384 products in fp32, and norms behind them."""

FORMATS = {
    "plain": ("",),
    "int8 static": ("int8", "int8"),
    "int8 dynamic": ("int8", "int8", "dynamic"),
    "int8 weights": ("int8",),
    "fp8 static": ("fp8", "fp8"),
    "fp8 dynamic": ("fp8", "fp8", "dynamic"),
    "fp8 weights": ("fp8",),
    "int4 weights": ("int4",),
    "int4 by fp8": ("int4", "fp8"),
    "nvfp4": ("nvfp4", "nvfp4"),
    "nvfp4 weights": ("nvfp4",),
}
NARROWED = ("plain", "int8 static", "int4 by fp8", "nvfp4")
"""Formats that are tried with bf16 around them; the widening does not look into branches."""
FORMS: tuple[ExpertsForm, ...] = ("plugin", "gather", "dense", "conditional")


def options(form: ExpertsForm, sms: tuple[int, ...] = (89,)) -> LoweringOptions:
    return LoweringOptions(max_tokens=MAX_TOKENS, sms=sms, experts=form)


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nodes of plugins carry no machine code; ONNX Runtime runs their bodies."""
    marks = {"plugin_namespace": DOMAIN, "plugin_version": "1"}
    monkeypatch.setattr(plugin_experts, "plugin_attributes", lambda op, sms: marks)


CASES = [
    pytest.param(form, base, formats, id=f"{form} {base} {name}")
    for name, formats in FORMATS.items()
    for base in ("fp32", "bf16")
    for form in FORMS
    if not (form == "plugin" and "nvfp4" in formats)  # refused, see below
    if base == "fp32" or (name in NARROWED and form != "conditional")
]


@pytest.mark.usefixtures("without_kernels")
@pytest.mark.parametrize(("form", "base", "formats"), CASES)
def test_a_form_means_what_the_neutral_graph_means(
    form: ExpertsForm, base: str, formats: tuple[str, ...], tmp_path: Path
) -> None:
    path = write_layer(tmp_path, recipe(base, *formats))
    inputs = example(5, (7, 2))
    expected = run(ir.load(path), tmp_path, inputs)
    found = run(embed(lowered(path, options(form))), tmp_path, inputs)
    assert max(map(relative_error, found, expected)) < TOLERANCE


def test_a_router_without_products_chooses_the_same_experts(tmp_path: Path) -> None:
    path = write_layer(tmp_path, recipe("fp32"))
    inputs = example(30, (7, 2))
    expected = run(ir.load(path), tmp_path, inputs)
    model = lowered(path, options("dense", sms=(75, 89)))
    assert not [node for node in model.graph if node.name == "logits" and node.op_type == "MatMul"]
    found = run(embed(model), tmp_path, inputs)
    assert max(map(relative_error, found, expected)) < TOLERANCE


@pytest.mark.parametrize(("slots", "tokens", "branch"), [(1, 1, "few"), (2, 9, "many")])
def test_the_branch_that_is_taken_follows_from_the_number_of_tokens(
    slots: int, tokens: int, branch: str, tmp_path: Path
) -> None:
    path = write_layer(tmp_path, recipe("fp32"))
    inputs = example(tokens, (3,) * slots)
    expected = run(ir.load(path), tmp_path, inputs)
    model = embed(lowered(path, options("conditional")))
    assert relative_error(run(model, tmp_path, inputs)[0], expected[0]) < TOLERANCE
    (choice,) = (node for node in model.graph if node.op_type == "If")
    other = "else_branch" if branch == "few" else "then_branch"
    _spoil(choice.attributes[other].as_graph())
    assert relative_error(run(model, tmp_path, inputs)[0], expected[0]) < TOLERANCE
    taken = "then_branch" if branch == "few" else "else_branch"
    _spoil(choice.attributes[taken].as_graph())
    assert relative_error(run(model, tmp_path, inputs)[0], expected[0]) > 0.1


def _spoil(graph: ir.Graph) -> None:
    """Let a branch give ten times what it should."""
    tape = ir.tape.Tape()
    ten = tape.op("Constant", [], {"value_float": 10.0})
    spoilt = tape.op("Mul", [graph.outputs[0], ten])
    spoilt.name, spoilt.type = f"{graph.name}_spoilt", graph.outputs[0].type
    ten.name = f"{graph.name}_ten"
    graph.extend(tape.nodes)
    graph.outputs[0] = spoilt


@pytest.mark.parametrize("form", ["gather", "dense"])
def test_an_expert_that_overflows_and_was_not_chosen_changes_nothing(
    form: ExpertsForm, tmp_path: Path
) -> None:
    path = write_layer(tmp_path, recipe("fp32"))
    model = ir.load(path)
    inputs = example(1, (3,))
    expected = run(ir.load(path), tmp_path, inputs)
    bias = model.graph.initializers["mlp.gate.e_score_correction_bias"].const_value
    gate = model.graph.initializers["mlp.experts.gate_proj"].const_value
    assert bias is not None
    assert gate is not None
    never, huge = bias.numpy().copy(), gate.numpy().copy()
    chosen = _chosen(path, inputs)
    unchosen = next(expert for expert in range(16) if expert not in chosen)
    never[unchosen], huge[unchosen] = -100, 1e38
    lowered_model = lower(model, passes(options(form))).model
    graph = embed(lowered_model).graph
    graph.initializers["mlp.gate.e_score_correction_bias"].const_value = ir.tensor(never)
    graph.initializers["mlp.experts.gate_proj"].const_value = ir.tensor(huge)
    found = run(lowered_model, tmp_path, inputs)
    assert relative_error(found[0], expected[0]) < TOLERANCE


def _chosen(path: Path, inputs: dict[str, np.ndarray]) -> set[int]:
    """Which experts the neutral graph chooses."""
    model = ir.load(path)
    (router,) = (node for node in model.graph if node.op_type == "Router")
    model.graph.outputs.append(router.outputs[0])
    return set(run(model, path.parent, inputs)[-1].flatten().tolist())


@pytest.mark.usefixtures("without_kernels")
def test_all_four_ops_of_the_plugin_form_are_marked_for_the_parser(tmp_path: Path) -> None:
    model = lowered(write_layer(tmp_path, recipe("fp16", "int4")), options("plugin"))
    marked = [node.op_type for node in model.graph if "plugin_namespace" in node.attributes]
    assert sorted(marked) == sorted(PLUGIN_OPS)
    assert {key[1] for key in model.functions} == set(PLUGIN_OPS)


def test_experts_that_no_kernel_reads_are_refused(tmp_path: Path) -> None:
    path = write_layer(tmp_path, recipe("bf16", "nvfp4", "nvfp4"))
    with pytest.raises(UnsupportedError, match=r"weights in nvfp4, .*--no-plugins"):
        lowered(path, options("plugin", sms=(120,)))


def test_codes_that_are_constants_are_not_gathered(tmp_path: Path) -> None:
    path = write_layer(tmp_path, recipe("bf16", "int8"))
    embedded = LoweringOptions(
        max_tokens=MAX_TOKENS, sms=(89,), experts="gather", weights="embedded"
    )
    with pytest.raises(RuntimeError, match="int8 codes are gathered from inputs"):
        lower(ir.load(path), passes(embedded))


@pytest.mark.parametrize("form", FORMS)
def test_a_layer_without_experts_is_lowered_all_the_same(form: ExpertsForm, tmp_path: Path) -> None:
    path = write_layer(tmp_path, recipe("fp32", "int8", "int8"), layer=DENSE)
    inputs = example(4, (0, 11))
    expected = run(ir.load(path), tmp_path, inputs)
    found = run(embed(lowered(path, options(form))), tmp_path, inputs)
    assert max(map(relative_error, found, expected)) < TOLERANCE


def test_a_byte_means_the_codes_that_it_holds() -> None:
    int4, fp8, nvfp4 = (byte_table(name) for name in ("int4", "fp8", "nvfp4"))
    assert int4 is not None
    assert fp8 is not None
    assert nvfp4 is not None
    byte = 0x9F - 256  # halves 15 and 9
    assert int4[byte + 128].tolist() == [-1, -7]
    assert nvfp4[byte + 128].tolist() == [-6, -0.5]
    assert fp8[0x7E + 128] == 448
    assert fp8[0x81 - 256 + 128] == -(2.0**-9)
    assert byte_table("int8") is byte_table("plain") is None


def test_a_layer_is_the_same_bytes_however_often_it_is_lowered(tmp_path: Path) -> None:
    path = write_layer(tmp_path, recipe("bf16", "nvfp4", "nvfp4"), layer=MOE)
    written = {
        ir.to_proto(lowered(path, options("dense", sms=(120,)))).SerializeToString(
            deterministic=True
        )
        for _ in range(3)
    }
    assert len(written) == 1
