"""Names of targets, and what their GPUs compute in."""

import pytest

from engines.targets import TARGETS
from engines.trt.sm import FIRST_SM, parse_target, sms_without
from runtime.errors import UnsupportedError


def test_several_sms_are_one_target_whatever_their_order() -> None:
    target = parse_target("rtx:sm120+sm89")
    assert target == parse_target("rtx:sm89+sm120")
    assert (target.name, target.home, target.sms) == ("rtx:sm89+sm120", "rtx", (89, 120))
    assert target.capabilities == ((8, 9), (12, 0))
    assert target.parts == ("rtx:sm89", "rtx:sm120")


def test_the_gpu_at_hand_is_a_target_without_sms() -> None:
    target = parse_target("trt")
    assert (target.name, target.home, target.sms, target.parts) == ("trt", "trt", (), ())


def test_every_single_target_of_the_table_is_read() -> None:
    names = [name for name in TARGETS if name.startswith("rtx:")]
    assert [parse_target(name).name for name in names] == names
    assert parse_target("rtx:" + "+".join(name.removeprefix("rtx:") for name in names)).sms == (
        75,
        80,
        86,
        89,
        120,
        121,
    )


def test_all_that_is_wrong_with_a_name_is_said_at_once() -> None:
    with pytest.raises(UnsupportedError) as caught:
        parse_target("rtx:sm90+sm89+sm89+sm7")
    words = str(caught.value)
    assert words.startswith("target 'rtx:sm90+sm89+sm89+sm7': 3 problems: ")
    assert "H100 and H200" in words
    assert "'rtx:sm7': known ones are" in words
    assert "sm89 is named twice" in words


@pytest.mark.parametrize("name", ["cpu", "rtx", "sm89", "", "trt:sm89"])
def test_other_names_are_told_what_tensorrt_targets_look_like(name: str) -> None:
    with pytest.raises(UnsupportedError, match=r"is not one of TensorRT: .*rtx:sm89\+sm120"):
        parse_target(name)


@pytest.mark.parametrize("name", ["rtx:", "rtx:sm89+", "rtx:89", "rtx:sm089"])
def test_half_a_name_is_not_guessed_at(name: str) -> None:
    with pytest.raises(UnsupportedError, match=r"1 problem: .*known ones are"):
        parse_target(name)


def test_types_by_sm_agree_with_the_table_of_targets() -> None:
    words = {"fp8": "fp8", "fp4": "nvfp4", "bf16": "bf16"}
    assert FIRST_SM.keys() == words.keys()
    for target in (one for name, one in TARGETS.items() if name.startswith("rtx:")):
        sms = parse_target(target.name).sms
        for dtype, word in words.items():
            assert (word in (*target.codes, *target.bases)) == (not sms_without(sms, dtype))


def test_one_sm_without_a_type_is_enough_to_lack_it() -> None:
    assert sms_without((80, 86, 89, 120), "fp8") == (80, 86)
    assert sms_without((80, 89), "int4") == ()
