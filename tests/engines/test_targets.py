"""Which target takes which recipe, and what the others are told."""

import pytest

from engines.targets import TARGETS, find_target, refusals, single_targets
from export.recipe.reading import load_recipe, parse_recipe
from runtime import names
from runtime.errors import UnsupportedError

RTX = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")


def takers(recipe: str) -> set[str]:
    """Targets of TensorRT-RTX, and of ONNX Runtime."""
    named = {name: target for name, target in TARGETS.items() if name != "trt"}
    return {name for name, target in named.items() if not refusals(target, load_recipe(recipe))}


def rtx(*numbers: int) -> set[str]:
    return {f"rtx:sm{number}" for number in numbers}


def test_several_cards_are_as_many_targets() -> None:
    assert tuple(TARGETS) == names.TARGETS
    assert list(TARGETS) == ["cpu", *(f"rtx:{number}" for number in RTX), "trt", "cuda"]
    assert [one.name for one in single_targets("rtx:sm120+sm89")] == ["rtx:sm120", "rtx:sm89"]
    assert single_targets("cpu") == (TARGETS["cpu"],)
    with pytest.raises(UnsupportedError, match="does not compile for H100 and H200"):
        single_targets("rtx:sm89+sm90")


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("fp32", rtx(80, 86, 89, 120, 121) | {"cuda"}),
        ("fp16", rtx(75, 80, 86, 89, 120, 121) | {"cuda"}),
        ("bf16", rtx(80, 86, 89, 120, 121) | {"cuda"}),
        ("int8", rtx(80, 86, 89, 120, 121) | {"cuda"}),
        ("int4", rtx(80, 86, 89, 120, 121) | {"cuda"}),
        ("fp8", rtx(89, 120, 121)),
        ("fp8-weight-only", rtx(89, 120, 121)),
        ("int4-fp8", rtx(89, 120, 121)),
        ("nvfp4", rtx(120, 121)),
    ],
)
def test_a_target_takes_a_recipe_whose_formats_it_has(recipe: str, expected: set[str]) -> None:
    assert takers(recipe) == {"cpu", *expected}


def test_a_refusal_says_what_would_work_and_where() -> None:
    (reason,) = refusals(TARGETS["rtx:sm86"], load_recipe("fp8-weight-only"))
    assert reason.startswith("no fp8 (vision, projector, attention, ")
    able = "cpu, rtx:sm89, rtx:sm120, rtx:sm121, trt"
    assert reason.endswith(f"int8 or int4 would work, or fp8 on {able}")
    (reason,) = refusals(TARGETS["rtx:sm75"], load_recipe("bf16"))
    assert reason.startswith("no bf16: base = 'fp16' would work, or bf16 on cpu, rtx:sm80, ")


def test_every_reason_is_given_at_once() -> None:
    reasons = refusals(TARGETS["rtx:sm75"], load_recipe("nvfp4"))
    assert [reason.split()[1].rstrip(":") for reason in reasons] == ["bf16", "fp8", "nvfp4"]


def test_activations_alone_can_be_the_reason() -> None:
    text = '[parts.head]\nweights = "int8"\nactivations = "fp8"'
    (reason,) = refusals(TARGETS["rtx:sm86"], parse_recipe(text, "mine", "mine"))
    assert reason.startswith("no fp8 (head): ")


def test_groups_that_were_not_compiled_are_refused_where_they_matter() -> None:
    recipe = parse_recipe('[parts.head]\nweights = "int4"\ngroup = 16', "mine", "mine")
    assert refusals(TARGETS["cpu"], recipe) == []
    assert refusals(TARGETS["rtx:sm89"], recipe) == [
        "no int4 in groups of 16 (head): groups of 32, 64, 128 would work"
    ]


def test_an_int8_cache_is_refused_where_it_does_not_build() -> None:
    recipe = load_recipe("int4-kv8")
    assert refusals(TARGETS["cpu"], recipe) == []
    assert refusals(TARGETS["rtx:sm89"], recipe) == [
        "no int8 cache: leaving parts.cache out would work (bf16), or int8 on cpu"
    ]


def test_what_is_not_int8_in_a_cache_has_a_base_type() -> None:
    for target in TARGETS.values():
        for name in ("fp32", "fp16", "bf16", "fp8", "nvfp4"):
            recipe = load_recipe(name)
            expected = "fp32" if target.name == "cpu" else recipe.base
            assert target.cache_type(recipe) == expected


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rtx:sm90", "TensorRT-RTX does not compile for H100 and H200; known ones are cpu, rtx:"),
        ("rtx:sm87", "does not compile for Jetson Orin"),
        ("rtx:sm100", "B200"),
        ("rtx:sm103", "B300"),
        ("rtx:sm110", "Jetson Thor"),
        ("tpu", "target 'tpu': known ones are cpu, rtx:sm75"),
    ],
)
def test_other_targets_are_unknown(name: str, words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        find_target(name)
