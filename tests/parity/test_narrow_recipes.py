"""fp16 and bf16: weights are stored narrow, computed in fp32; routing is compared apart.

A narrower weight may tip a near tie between two experts, which moves a token by far more than
rounding does. So logits are compared on tokens that chose the same experts in every layer, and
where choices differ, the margin of the fp32 router must have been small.
"""

import numpy as np
import pytest

from calibration.parity import relative_error
from calibration.tolerances import STORED_BF16, STORED_FP16
from runtime import names
from runtime.artifact.folder import Artifact
from runtime.engine.cpu.engine import CpuEngine
from runtime.engine.protocol import FloatArray
from runtime.generation.steps import embed_prompt

from .conftest import Compile, Compiled, make_prompt

Taps = dict[int, dict[str, np.ndarray]]
NEAR_TIE = 0.02
"""Largest fp32 margin that a narrow weight may overturn; margins here are up to about 1."""


def run_with_taps(compiled: Compiled) -> tuple[FloatArray, Taps]:
    """Logits of one prompt (S, V) and the router's decisions per layer."""
    taps: Taps = {}
    engine = CpuEngine(
        Artifact.open(compiled.artifact),
        observer=lambda layer, values: taps.update({layer: values}),
    )
    prompt = make_prompt(compiled.session, [(131, 45), (60, 60)], "the same tokens, narrower")
    hidden = embed_prompt(engine, prompt)[None]
    return engine.step([0], hidden, np.array([0]), np.arange(len(prompt))), taps


@pytest.mark.parametrize(("recipe", "bound"), [("fp16", STORED_FP16), ("bf16", STORED_BF16)])
def test_narrow_weights_stay_close_on_equal_routing(
    compile_model: Compile, recipe: str, bound: float
) -> None:
    exact, exact_taps = run_with_taps(compile_model("tiny", "fp32"))
    narrow, narrow_taps = run_with_taps(compile_model("tiny", recipe))
    equal = np.ones(len(exact), dtype=bool)
    for layer, taps in exact_taps.items():
        chosen = [np.sort(t[names.TAP_EXPERTS][0], axis=-1) for t in (taps, narrow_taps[layer])]
        same = (chosen[0] == chosen[1]).all(axis=-1)
        first_flips = equal & ~same  # later layers see an already moved token
        assert (taps[names.TAP_MARGIN][0][first_flips] < NEAR_TIE).all()
        equal &= same
    assert equal.mean() > 0.8
    # Attention mixes in tokens that were moved; the last ones see the most of them.
    before_first_flip = len(equal) if equal.all() else int(np.argmin(equal))
    assert before_first_flip >= 3
    assert relative_error(narrow[:before_first_flip], exact[:before_first_flip]) <= bound
    assert relative_error(narrow[:before_first_flip], exact[:before_first_flip]) > bound / 100


def test_taps_say_what_the_router_did(compile_model: Compile) -> None:
    _, taps = run_with_taps(compile_model("tiny", "fp32"))
    assert sorted(taps) == [1, 2]
    for values in taps.values():
        experts, scores = values[names.TAP_EXPERTS][0], values[names.TAP_SCORES][0]
        assert all(len(set(row)) == 3 for row in experts)
        assert experts.min() >= 0
        assert experts.max() < 8
        np.testing.assert_allclose(scores.sum(-1), 2.446, rtol=1e-5)
        assert (values[names.TAP_MARGIN] > 0).all()
