import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.errors import InputError
from runtime.generation.sampling import Sampler, Sampling

VOCAB = 1000
FloatArray = NDArray[np.float32]


def random_logits(seed: int, size: int = VOCAB, spread: float = 2.0) -> FloatArray:
    return (np.random.default_rng(seed).standard_normal(size) * spread).astype(np.float32)


def log_softmax(logits: FloatArray) -> NDArray[np.float64]:
    exact = logits.astype(np.float64)
    return exact - math.log(math.fsum(math.exp(value) for value in exact.tolist()))


def make_sampling(values: dict[str, Any]) -> Sampling:
    return Sampling(**values)


def draws(logits: FloatArray, num: int, **values: float | None) -> list[int]:
    sampler = Sampler(make_sampling({"temperature": 1.0, "seed": 5} | values), [])
    return [sampler.choose(logits, []).token_id for _ in range(num)]


def logits_of(*shares: float) -> FloatArray:
    return np.array([math.log(share) for share in shares], dtype=np.float32)


def test_the_default_is_greedy_and_takes_the_highest_logit() -> None:
    logits = random_logits(0)
    assert Sampling() == Sampling.greedy()
    assert Sampler(Sampling(), []).choose(logits, []).token_id == int(np.argmax(logits))


def test_greedy_takes_the_lowest_id_of_equal_logits() -> None:
    logits = np.zeros(VOCAB, dtype=np.float32)
    logits[[7, 3, 900]] = 1.5
    assert Sampler(Sampling(), []).choose(logits, []).token_id == 3


@pytest.mark.parametrize(
    "values", [{"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}, {"temperature": 1e-300}]
)
def test_every_filter_at_its_tightest_is_greedy(values: dict[str, Any]) -> None:
    for seed in range(5):
        logits = random_logits(seed)
        # 50 draws from unfiltered logits would all agree with probability below 1e-30.
        assert set(draws(logits, 50, **values)) == {int(np.argmax(logits))}


def test_the_tightest_top_k_takes_the_lowest_id_of_equal_logits() -> None:
    logits = np.zeros(VOCAB, dtype=np.float32)
    logits[[7, 3, 900]] = 1.5
    assert set(draws(logits, 50, top_k=1)) == {3}
    assert set(draws(logits, 50, top_k=2)) == {3, 7}


@pytest.mark.parametrize(
    "values",
    [
        {"top_k": VOCAB},
        {"top_k": VOCAB + 5},
        {"min_p": 1e-300},
        {"top_p": 1 - 1e-16},
        {"repetition_penalty": 1},
    ],
)
def test_a_filter_that_removes_nothing_does_not_change_the_draws(values: dict[str, Any]) -> None:
    logits = random_logits(1)
    assert draws(logits, 200, **values) == draws(logits, 200)


def test_top_k_without_a_token_that_is_never_drawn_does_not_change_the_draws() -> None:
    logits = random_logits(1)
    logits[17] = -1e6
    assert draws(logits, 200, top_k=VOCAB - 1) == draws(logits, 200)


def test_top_k_keeps_exactly_the_k_best() -> None:
    logits = random_logits(2, spread=0.3)
    best = set(np.argsort(logits)[-3:].tolist())
    assert set(draws(logits, 400, top_k=3)) == best  # each has a share near 1/3


def test_top_p_keeps_the_fewest_tokens_that_hold_the_share() -> None:
    logits = logits_of(0.1, 0.4, 0.2, 0.3)
    # 0.4 + 0.3 does not hold 0.75, with 0.2 it does; the share of 0.2 is 2/9: (7/9)^400 < 1e-43.
    assert set(draws(logits, 400, top_p=0.75)) == {1, 2, 3}
    assert set(draws(logits, 400, top_p=0.65)) == {1, 3}
    assert set(draws(logits, 400, top_p=0.35)) == {1}


def test_a_nucleus_larger_than_the_first_look_is_complete() -> None:
    logits = np.zeros(5000, dtype=np.float32)
    logits[4000:] = -30.0  # 4000 equal tokens hold all but 1e-10 of the probability
    seen = set(draws(logits, 3000, top_p=0.999))
    # Of equal tokens the lowest ids are kept: 0.999 * 4000 = 3996 of them.
    assert max(seen) <= 3996
    # 3000 draws from 3996 ids all stay below 3900 with (3900 / 3996)^3000 < 1e-31.
    assert max(seen) > 3900


def test_min_p_keeps_tokens_by_their_share_of_the_best() -> None:
    logits = logits_of(0.1, 0.4, 0.2, 0.3)
    assert set(draws(logits, 400, min_p=0.45)) == {1, 2, 3}
    assert set(draws(logits, 400, min_p=0.7)) == {1, 3}


def test_top_p_looks_at_what_top_k_left() -> None:
    logits = logits_of(0.1, 0.4, 0.2, 0.3)
    # Among the two best the shares are 4/7 = 0.571 and 3/7: 0.5 keeps one, but of all four two.
    assert set(draws(logits, 200, top_k=2, top_p=0.5)) == {1}
    assert set(draws(logits, 200, top_p=0.5)) == {1, 3}


def test_filters_look_at_scores_after_the_temperature() -> None:
    logits = logits_of(0.6, 0.4)
    # At temperature 0.1 the ratio 2/3 becomes (2/3)^10 = 0.017.
    assert set(draws(logits, 200, min_p=0.1, temperature=0.1)) == {0}
    assert set(draws(logits, 200, min_p=0.1)) == {0, 1}


def test_draws_follow_the_distribution() -> None:
    shares = np.array([0.5, 0.25, 0.15, 0.1])
    num = 40_000
    counts = np.bincount(draws(logits_of(*shares), num), minlength=4)
    # 6 standard deviations: chance fails this about once in 10^8, and the seed is fixed.
    assert (abs(counts - num * shares) < 6 * np.sqrt(num * shares * (1 - shares))).all()


def test_temperature_two_draws_from_square_roots() -> None:
    shares = np.sqrt([0.81, 0.09, 0.09, 0.01])
    shares /= shares.sum()
    num = 40_000
    counts = np.bincount(draws(logits_of(0.81, 0.09, 0.09, 0.01), num, temperature=2), minlength=4)
    assert (abs(counts - num * shares) < 6 * np.sqrt(num * shares * (1 - shares))).all()


def test_a_seed_repeats_its_draws_and_another_seed_or_none_does_not() -> None:
    logits = random_logits(3, spread=0.1)  # 60 draws agree by chance with 1000^-60
    first = draws(logits, 60, seed=11)
    assert first == draws(logits, 60, seed=11)
    assert first != draws(logits, 60, seed=12)
    assert draws(logits, 60, seed=None) != draws(logits, 60, seed=None)


def test_a_token_without_probability_is_never_drawn() -> None:
    logits = np.full(VOCAB, -1e6, dtype=np.float32)
    logits[[0, 500]] = 0.0
    assert set(draws(logits, 300)) == {0, 500}


def test_the_repetition_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    sampling = Sampling(repetition_penalty=2.0)
    positive = np.array([3.0, 2.0, 1.6], dtype=np.float32)
    assert Sampler(sampling, []).choose(positive, []).token_id == 0
    assert Sampler(sampling, [0]).choose(positive, []).token_id == 1  # 1.5 2.0 1.6
    assert Sampler(sampling, [0]).choose(positive, [1, 1]).token_id == 2  # 1.5 1.0 1.6
    negative = np.array([-1.0, -1.5, -9.0], dtype=np.float32)
    assert Sampler(sampling, []).choose(negative, [0]).token_id == 1  # -2.0 -1.5 -9.0


def test_an_id_seen_twice_is_penalised_once() -> None:
    sampling = Sampling(repetition_penalty=2.0)
    logits = np.array([4.0, 1.5], dtype=np.float32)
    assert Sampler(sampling, [0, 0]).choose(logits, [0]).token_id == 0  # 2.0, not 0.5


def test_logits_are_not_changed() -> None:
    logits = random_logits(4)
    before = logits.copy()
    values = Sampling(temperature=0.7, top_k=9, top_p=0.8, min_p=0.01, repetition_penalty=1.3)
    Sampler(values, [1, 2]).choose(logits, [3])
    assert (logits == before).all()


def test_log_probabilities_are_those_of_the_unmodified_model() -> None:
    logits = random_logits(5)
    expected = log_softmax(logits)
    sampling = Sampling(temperature=0.3, top_k=4, repetition_penalty=1.7, logprobs=3, seed=0)
    choice = Sampler(sampling, [int(np.argmax(logits))]).choose(logits, [])
    assert choice.logprob == pytest.approx(expected[choice.token_id], abs=1e-12)
    best = np.argsort(-expected)[:3]
    assert [entry.token_id for entry in choice.top] == best.tolist()
    assert [entry.logprob for entry in choice.top] == pytest.approx(expected[best], abs=1e-12)


def test_log_probabilities_of_large_logits_stay_finite() -> None:
    logits = np.array([3000.0, 2999.0], dtype=np.float32)
    choice = Sampler(Sampling(logprobs=2), []).choose(logits, [])
    assert choice.logprob == pytest.approx(-math.log1p(math.exp(-1)), abs=1e-12)


def test_a_forced_token_is_reported_like_a_chosen_one() -> None:
    logits = random_logits(6)
    choice = Sampler(Sampling(logprobs=1), []).describe(logits, 17)
    assert choice.token_id == 17
    assert choice.logprob == pytest.approx(log_softmax(logits)[17], abs=1e-12)


def test_equal_alternatives_come_in_the_order_of_their_ids() -> None:
    logits = np.zeros(VOCAB, dtype=np.float32)
    choice = Sampler(Sampling(logprobs=4), []).choose(logits, [])
    assert [entry.token_id for entry in choice.top] == [0, 1, 2, 3]


def test_log_probabilities_are_left_out_unless_asked_for() -> None:
    choice = Sampler(Sampling(), []).choose(random_logits(7), [])
    assert (choice.logprob, choice.top) == (None, ())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, r"temperature: expected 0 \(greedy\) or a positive number.*-0.1"),
        ({"temperature": math.nan}, "temperature: .* found nan"),
        ({"temperature": math.inf}, "temperature: .* found inf"),
        ({"temperature": "1"}, "temperature: .* found '1'"),
        ({"top_k": -1}, "top_k: expected an integer of at least 0, found -1"),
        ({"top_k": 1.5}, "top_k: .* found 1.5"),
        ({"top_p": 0}, "top_p: expected a number above 0 and at most 1"),
        ({"top_p": 1.01}, "top_p: .* found 1.01"),
        ({"top_p": math.nan}, "top_p: .* found nan"),
        ({"min_p": -0.5}, "min_p: expected a number from 0"),
        ({"min_p": math.nan}, "min_p: .* found nan"),
        ({"repetition_penalty": 1e-310}, "repetition_penalty: expected a number from 0.01 to 100"),
        ({"repetition_penalty": 100.5}, "repetition_penalty: .* found 100.5"),
        ({"repetition_penalty": math.nan}, "repetition_penalty: .* found nan"),
        ({"seed": -3}, "seed: expected an integer of at least 0, found -3"),
        ({"seed": True}, "seed: .* found True"),
        ({"logprobs": 21}, "logprobs: expected an integer from 0 to 20, found 21"),
    ],
)
def test_a_value_outside_its_range_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sampling(**values)


def test_all_wrong_values_are_named_at_once() -> None:
    with pytest.raises(InputError, match=r"3 problems: temperature.*; top_p.*; seed"):
        Sampling(temperature=-1, top_p=2, seed=-1)


@pytest.mark.parametrize(
    ("sampling", "is_plain"),
    [
        (Sampling.greedy(), True),
        (Sampling(top_k=5, top_p=0.5, min_p=0.1, seed=7), True),  # change nothing at temperature 0
        (Sampling(temperature=0.1), False),
        (Sampling(repetition_penalty=0.9), False),
        (Sampling(repetition_penalty=1.1), False),
        (Sampling(logprobs=1), False),
    ],
    ids=str,
)
def test_only_the_highest_logit_alone_is_plain_greedy(
    sampling: Sampling, *, is_plain: bool
) -> None:
    assert sampling.is_plain_greedy is is_plain
