"""The audit: plans that are not what they were meant to be are found."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.trt.audit import (
    INSPECTOR,
    KERNELS_BYTES,
    SIZE,
    TYPES,
    Audit,
    Wanted,
    audit_plan,
    check_audit,
    inspect_plan,
    inspector_contradictions,
    size_contradictions,
    types_by_node,
    wanted_by,
)
from engines.trt.builder import BuiltPlan, build_plan
from engines.trt.facts import Facts, Layer, Tensor
from engines.trt.home import Home
from engines.trt.network import parse_network
from engines.trt.products import Precision, Product
from engines.trt.profiles import ShapeRange
from engines.trt.sm import parse_target
from export.recipe.reading import load_recipe
from export.recipe.sizes import parameters
from runtime.errors import GateError
from tests.doubles import make_small_config

from .graphs import OUT, ROWS, WIDTH, linear, quantised, save_graph

USUAL = {"x": (4, WIDTH)}
FP16 = Precision(weights="fp16", activations="fp16")


def everywhere(precision: Precision) -> Wanted:
    return lambda product: precision if product.weight else None


def audited(home: Home, graph: Path) -> Audit:
    parsed = parse_network(home, graph)
    plan = build_plan(parsed, parse_target("rtx:sm89"), ROWS, graph.with_suffix(".plan"))
    return audit_plan(parsed, plan, USUAL)


def planted(tmp_path: Path) -> Path:
    """Save two products, the second widened to fp32 in silence."""
    text = f"""g (float16[N, {WIDTH}] x) => (float16[N, {OUT}] y) {{
        [good] a = MatMul (x, w)
        a32 = Cast <to = 1> (a)  v32 = Cast <to = 1> (v)
        [planted] b = MatMul (a32, v32)
        y = Cast <to = 10> (b) }}"""
    weights = {"w": np.ones((WIDTH, WIDTH), np.float16), "v": np.ones((WIDTH, OUT), np.float16)}
    return save_graph(tmp_path / "planted.onnx", text, weights)


def test_a_plan_in_the_wanted_precision_passes(home: Home, tmp_path: Path) -> None:
    audit = audited(home, linear(tmp_path))
    assert audit.share(everywhere(FP16)) == 1
    assert audit.exceptions(everywhere(FP16)) == []
    assert audit.contradictions == ()
    check_audit(audit, everywhere(FP16), 1.0)


def test_a_planted_fp32_product_is_found_by_its_name(home: Home, tmp_path: Path) -> None:
    audit = audited(home, planted(tmp_path))
    assert audit.share(everywhere(FP16)) == pytest.approx(WIDTH / (WIDTH + OUT))
    assert audit.exceptions(everywhere(FP16)) == [
        "node planted with v is fp16 x fp32, wanted fp16 x fp16"
    ]
    check_audit(audit, everywhere(FP16), 0.6)
    with pytest.raises(
        GateError, match=r"66\.7% of the multiply-adds .* 99\.0% are asked"
    ) as caught:
        check_audit(audit, everywhere(FP16), 0.99)
    assert "node planted" in str(caught.value)
    assert "good" not in str(caught.value)


def test_weights_that_were_never_quantised_are_found(home: Home, tmp_path: Path) -> None:
    wanted = everywhere(Precision(weights="int8", activations="int8"))
    both = audited(home, quantised(tmp_path, "int8", rounds=True))
    check_audit(both, wanted, 1.0)
    one = audited(home, quantised(tmp_path, "int8", rounds=False))
    assert one.exceptions(wanted) == ["node proj with w is int8 x fp16, wanted int8 x int8"]
    none = audited(home, linear(tmp_path))
    assert none.exceptions(wanted) == ["node proj with w is fp16 x fp16, wanted int8 x int8"]
    assert none.share(wanted) == 0


def test_without_a_gpu_the_verdict_rests_on_types_and_says_so(home: Home, tmp_path: Path) -> None:
    audit = audited(home, linear(tmp_path))
    assert inspect_plan(home, audit.plan, USUAL) is None
    assert audit.evidence == (TYPES,)
    with pytest.raises(GateError, match=f"by {TYPES}"):
        check_audit(audit, everywhere(Precision(weights="fp8", activations="fp8")), 0.5)


def facts_with(weights_bytes: int) -> Facts:
    tensor = Tensor(name="w", dtype="int8", shape=(weights_bytes,))
    layer = Layer(name="w", node="w", kind="CONSTANT", inputs=(), outputs=(tensor,))
    return Facts(inputs=(), outputs=(), layers=(layer,))


def plan_of(size_bytes: int, num_profiles: int) -> BuiltPlan:
    return BuiltPlan(
        path=Path("x.plan"),
        size_bytes=size_bytes,
        sha256="",
        target="rtx:sm89",
        built_with="",
        build_s=0.0,
        peak_rss_bytes=0,
        weights_bytes=0,
        activation_bytes=0,
        num_profiles=num_profiles,
        num_layers=1,
        decomposed=(),
        warnings=(),
    )


@pytest.mark.parametrize(
    ("weights", "plan", "profiles", "word"),
    [
        (1 << 30, (1 << 30) + KERNELS_BYTES, 1, None),
        (1 << 30, (2 << 30) + 2 * KERNELS_BYTES, 2, None),
        (1 << 30, 1 << 30, 2, None),
        (1 << 30, 2 << 30, 1, "explain at most"),
        (1 << 30, 4 << 30, 2, "explain at most"),
        (1 << 30, 1 << 29, 1, "fewer than its weights"),
        (1 << 10, KERNELS_BYTES, 1, None),
        (1 << 10, 0, 1, None),
        (0, 2 * KERNELS_BYTES, 1, "explain at most"),
    ],
)
def test_the_size_of_a_plan_speaks_when_its_weights_are_large(
    weights: int, plan: int, profiles: int, word: str | None
) -> None:
    found = list(size_contradictions(facts_with(weights), plan_of(plan, profiles)))
    assert len(found) == (word is not None)
    assert word is None or word in found[0]


def test_large_weights_in_a_plan_are_evidence(home: Home, tmp_path: Path) -> None:
    width = 4352
    text = f"g (float16[N, {width}] x) => (float16[N, {width}] y) {{ y = MatMul (x, w) }}"
    graph = save_graph(tmp_path / "large.onnx", text, {"w": np.ones((width, width), np.float16)})
    parsed = parse_network(home, graph)
    profile = {"x": ShapeRange((1, width), (4, width), (8, width))}
    plan = build_plan(parsed, parse_target("rtx:sm89"), [profile], tmp_path / "large.plan")
    audit = audit_plan(parsed, plan, {"x": (4, width)})
    assert audit.evidence == (TYPES, SIZE)
    assert audit.contradictions == ()


INSPECTED: dict[str, Any] = {
    "Layers": [
        {
            "Name": "gemm",
            "Inputs": [{"Name": "x", "Format/Datatype": "Row major linear FP16 format"}],
            "Outputs": [{"Name": "y", "Format/Datatype": "Half"}],
            "Metadata": "[ONNX Layer: inner | outer (F)]\x1e[ONNX Layer: next]",
        },
        {
            "Name": "wide",
            "Inputs": [{"Name": "y", "Format/Datatype": "Row major linear FP32"}],
            "Outputs": [{"Name": "z", "Format/Datatype": "Float"}],
            "Metadata": "[ONNX Layer: proj]",
        },
        {"Name": "later", "Inputs": [{"Format/Datatype": "N/A due to dynamic shapes"}]},
        "a bare name",
    ],
    "Bindings": ["x"],
}


def product(node: str, weights: str, activations: str) -> Product:
    return Product(
        node=node,
        kind="MATRIX_MULTIPLY",
        weight="w",
        weight_bytes=1,
        precision=Precision(weights=weights, activations=activations),
        multiply_adds=1,
    )


def test_the_inspectors_words_become_types_by_node() -> None:
    assert types_by_node(INSPECTED) == {
        "outer (F) / inner": {"fp16"},
        "next": {"fp16"},
        "proj": {"fp32"},
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("BFloat16", "bf16"),
        ("Row major linear BF16 format", "bf16"),
        ("Half", "fp16"),
        ("Float", "fp32"),
        ("Thirty-two wide channel vectorized row major Int8 format", "int8"),
        ("FP8", "fp8"),
        ("FP4", "fp4"),
        ("INT4", "int4"),
    ],
)
def test_each_type_is_read_as_itself_alone(text: str, expected: str) -> None:
    layer = {"Inputs": [{"Format/Datatype": text}], "Metadata": "[ONNX Layer: n]"}
    assert types_by_node({"Layers": [layer]}) == {"n": {expected}}


def test_what_the_inspector_saw_wins_over_the_types() -> None:
    types = types_by_node(INSPECTED)
    good = [product("outer (F) / inner", "int4", "fp16"), product("elsewhere", "fp8", "fp8")]
    assert list(inspector_contradictions(good, types)) == []
    (words,) = inspector_contradictions([product("proj", "int8", "int8")], types)
    assert words == "node proj is int8 x int8 in the network and fp32 in the plan"
    audit = Audit(
        plan=Path("x.plan"),
        products=(product("proj", "int8", "int8"),),
        evidence=(TYPES, INSPECTOR),
        contradictions=(words,),
    )
    with pytest.raises(GateError, match=r"100\.0% of the multiply-adds .*fp32 in the plan"):
        check_audit(audit, everywhere(Precision(weights="int8", activations="int8")), 1.0)


def asked(recipe: str, weight: str, kind: str = "MATRIX_MULTIPLY") -> str:
    found = parameters(make_small_config())
    (name,) = {one.graph for one in found if one.name.endswith(f".{weight}")} & {"layer_01"} or {""}
    graph = [one for one in found if one.graph == name]
    one = Product(
        node="n",
        kind=kind,
        weight=weight,
        weight_bytes=1,
        precision=FP16,
        multiply_adds=1,
    )
    return str(wanted_by(load_recipe(recipe), graph)(one))


@pytest.mark.parametrize(
    ("recipe", "weight", "expected"),
    [
        ("fp16", "self_attn.q_proj.weight", "fp16 x fp16"),
        ("int8", "self_attn.q_proj.weight", "int8 x int8"),
        ("int8-weight-only", "mlp.experts.gate_proj", "int8 x bf16"),
        ("int4", "mlp.experts.down_proj", "int4 x bf16"),
        ("nvfp4", "mlp.experts.down_proj", "fp4 x fp4"),
        ("int8", "mlp.gate.weight", "fp32 x fp32"),
        ("int8", "a constant of no part", "bf16 x bf16"),
    ],
)
def test_a_recipe_asks_for_a_precision_of_each_parameter(
    recipe: str, weight: str, expected: str
) -> None:
    assert asked(recipe, weight) == expected


def test_a_plugin_is_to_multiply_in_the_base_type() -> None:
    assert asked("int8", "mlp.experts.gate_proj", "PLUGIN_V3") == "int8 x bf16"


def test_nothing_is_asked_of_products_of_activations() -> None:
    one = product("scores", "fp32", "fp32")
    free = Product(**{**vars(one), "weight": ""})
    assert wanted_by(load_recipe("int8"), [])(free) is None
    audit = Audit(plan=Path("x"), products=(free,), evidence=(TYPES,), contradictions=())
    assert audit.share(wanted_by(load_recipe("int8"), [])) == 1
