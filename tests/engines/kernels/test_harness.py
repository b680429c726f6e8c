"""The harness for a device: what it says without one, and that it finds what is wrong."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.kernel_checks import Case, check_halves, check_router, check_sort, sort_pairs
from benchmarks.kernels import TINY, main

from .test_experts import make_form

if TYPE_CHECKING:
    import torch

torch_module: Any = pytest.importorskip("torch")
Damage = Callable[["torch.Tensor"], None]


def leave_out_an_element(result: "torch.Tensor") -> None:
    result[-1, -1, -1] = torch_module.nan


def lose_precision(result: "torch.Tensor") -> None:
    result *= 1.001


def stay_right(result: "torch.Tensor") -> None:
    """Change nothing."""


@pytest.mark.skipif(torch_module.cuda.is_available(), reason="there is a device")
def test_without_a_device_it_says_so_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 1
    output = capsys.readouterr()
    assert output.err == "no CUDA device; --interpret checks the kernels on the CPU\n"
    assert output.out == ""


@pytest.mark.parametrize(
    ("damage", "problems"),
    [
        (stay_right, []),
        (leave_out_an_element, ["other down", "other up"]),
        (lose_precision, ["other down", "other up"]),
    ],
)
def test_an_element_left_out_or_computed_coarsely_is_found(
    damage: Damage, problems: list[str]
) -> None:
    torch_module.manual_seed(1)
    case = Case(TINY, make_form("fp32", "int4", 64), "cpu")

    def up(
        inputs: "Sequence[torch.Tensor]", outputs: "Sequence[torch.Tensor]", num_tokens: int
    ) -> None:
        hidden, experts = inputs[:2]
        for token, rank in torch_module.cartesian_prod(
            torch_module.arange(7), torch_module.arange(2)
        ):
            expert = int(experts[token, rank])
            gated = hidden[token].double() @ case.gate.values(expert)
            lifted = hidden[token].double() @ case.up.values(expert)
            outputs[0][token, rank] = gated * gated.sigmoid() * lifted
        damage(outputs[0])

    def down(
        inputs: "Sequence[torch.Tensor]", outputs: "Sequence[torch.Tensor]", num_tokens: int
    ) -> None:
        inner, scores = inputs[:2]
        for token, rank in torch_module.cartesian_prod(
            torch_module.arange(7), torch_module.arange(2)
        ):
            matrix = case.down.values(int(experts[token, rank]))
            outputs[0][token, rank] = scores[token, rank] * (inner[token, rank].double() @ matrix)
        damage(outputs[0])

    experts = case.experts(7, "random")
    assert check_halves(case, {"GroupedUp": up, "GroupedDown": down}, experts) == problems


def test_another_expert_and_an_unstable_order_are_found() -> None:
    torch_module.manual_seed(2)
    case = Case(TINY, make_form("fp32", "fp32", 0), "cpu")

    def choose_the_first(
        inputs: "Sequence[torch.Tensor]", outputs: "Sequence[torch.Tensor]", num_tokens: int
    ) -> None:
        outputs[0][:] = torch_module.arange(2)
        outputs[1][:] = 0.5

    def turn_around(
        inputs: "Sequence[torch.Tensor]", outputs: "Sequence[torch.Tensor]", num_tokens: int
    ) -> None:
        order, starts = sort_pairs(inputs[0], 5)
        outputs[0][:], outputs[1][:] = order.flip(0), starts

    assert check_router(case, choose_the_first, 9) == ["other experts"]
    assert check_sort(case, turn_around, case.experts(9, "random")) == ["other order"]
