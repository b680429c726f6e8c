"""Real TensorRT-RTX plans of small graphs: every number format, every way to fail."""

import hashlib
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engines.trt.builder import BuiltPlan, build_plan
from engines.trt.callbacks import PhaseTree
from engines.trt.home import Home
from engines.trt.network import parse_network
from engines.trt.profiles import ShapeRange
from engines.trt.sm import parse_target
from runtime.errors import CapacityError, UnsupportedError

from .graphs import (
    ROWS,
    WIDTH,
    build,
    int4,
    linear,
    nvfp4,
    quantised,
    save_graph,
)
from .plan_header import HEADER_BYTES, read_header

Make = Callable[[Path], Path]


def int8(tmp_path: Path) -> Path:
    return quantised(tmp_path, "int8", rounds=True)


def int8_weights(tmp_path: Path) -> Path:
    return quantised(tmp_path, "int8", rounds=False)


def fp8(tmp_path: Path) -> Path:
    return quantised(tmp_path, "fp8", rounds=True)


def fp8_weights(tmp_path: Path) -> Path:
    return quantised(tmp_path, "fp8", rounds=False)


def bf16(tmp_path: Path) -> Path:
    return linear(tmp_path, "bfloat16")


def fp32(tmp_path: Path) -> Path:
    return linear(tmp_path, "float")


def refusal(home: Home, graph: Path, target: str = "rtx:sm89", **options: object) -> str:
    with pytest.raises(UnsupportedError) as caught:
        build(home, graph, target, **options)  # type: ignore[arg-type]  # profiles alone
    words = str(caught.value)
    assert words.startswith(f"{graph}: {home.title} cannot build this graph for {target}: ")
    assert "\n" not in words
    assert list(graph.parent.glob("*.plan*")) == []
    return words


@pytest.mark.parametrize(
    ("make", "target"),
    [
        (linear, "rtx:sm75"),
        (linear, "rtx:sm89"),
        (fp32, "rtx:sm89"),
        (bf16, "rtx:sm80"),
        (int8, "rtx:sm80"),
        (int8_weights, "rtx:sm86"),
        (int4, "rtx:sm80"),
        (fp8, "rtx:sm89"),
        (fp8_weights, "rtx:sm89+sm121"),
        (nvfp4, "rtx:sm120"),
        (linear, "rtx:sm80+sm86+sm89+sm120"),
    ],
)
def test_a_format_builds_where_the_target_has_it(
    home: Home, tmp_path: Path, make: Make, target: str
) -> None:
    plan = build(home, make(tmp_path), target)
    content = plan.path.read_bytes()
    header = read_header(content)
    assert plan.target == target
    assert header.sms == parse_target(target).sms
    assert header.size_bytes == plan.size_bytes == len(content) > HEADER_BYTES
    assert plan.sha256 == hashlib.sha256(content).hexdigest()
    assert plan.built_with == home.title
    assert ".".join(map(str, header.version)) == home.trt.__version__


@pytest.mark.parametrize(
    ("make", "target", "lacking", "able", "dtype"),
    [
        (fp8, "rtx:sm80+sm89", "sm80", "sm89", "fp8"),
        (fp8_weights, "rtx:sm75+sm86", "sm75, sm86", "sm89 and newer", "fp8"),
        (nvfp4, "rtx:sm89+sm120", "sm89", "sm120", "fp4"),
        (bf16, "rtx:sm75", "sm75", "sm80 and newer", "bf16"),
    ],
)
def test_a_type_that_one_sm_lacks_is_refused_before_the_build(
    home: Home, tmp_path: Path, make: Make, target: str, lacking: str, able: str, dtype: str
) -> None:
    words = refusal(home, make(tmp_path), target)
    assert f"{dtype} (node " in words
    assert f" is not there on {lacking}, but on {able}: choose another" in words


def test_the_builder_itself_refuses_such_a_type_once_it_is_told_the_target(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engines.trt.builder.missing_types", lambda *_: [])
    words = refusal(home, fp8(tmp_path), "rtx:sm80+sm89")
    assert "Cannot compile for target(s) sm80" in words
    assert "HW-specific datatypes: fp8_e4m3" in words
    assert "choose a recipe without these types" in words


def test_fp32_products_are_not_rounded_to_tf32(home: Home, tmp_path: Path) -> None:
    parsed = parse_network(home, fp32(tmp_path))
    target = parse_target("rtx:sm89")
    config = home.make_config(parsed.builder, parsed.network, target, [], None)
    assert not config.get_flag(home.trt.BuilderFlag.TF32)
    assert parsed.builder.create_builder_config().get_flag(home.trt.BuilderFlag.TF32)


def test_the_same_graph_gives_the_same_bytes_from_any_folder(home: Home, tmp_path: Path) -> None:
    plans = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        plans.append(build(home, int8(folder)))
        build(home, linear(folder, "bfloat16"))  # what came before leaves no trace
    assert plans[0].sha256 == plans[1].sha256
    assert str(tmp_path).encode() not in plans[0].path.read_bytes()


def test_weights_as_inputs_stay_out_of_the_plan(home: Home, tmp_path: Path) -> None:
    size = 1024
    text = f"g (float16[N, {size}] x{{}}) => (float16[N, {size}] y) {{{{ y = MatMul (x, w) }}}}"
    profiles = [{"x": ShapeRange((1, size), (4, size), (8, size))}]
    inside = save_graph(
        tmp_path / "in.onnx", text.format(""), {"w": np.ones((size, size), np.float16)}
    )
    outside = save_graph(tmp_path / "out.onnx", text.format(f", float16[{size}, {size}] w"))
    held = build(home, inside, profiles=profiles)
    bound = build(home, outside, profiles=profiles)
    assert held.size_bytes > 2 * size**2 > 10 * bound.size_bytes
    assert held.weights_bytes >= 2 * size**2 > bound.weights_bytes


def test_two_profiles_are_two_profiles(home: Home, tmp_path: Path) -> None:
    one = {"x": ShapeRange((1, WIDTH), (1, WIDTH), (1, WIDTH))}
    graph = linear(tmp_path)
    single = build(home, graph)
    double = build(home, graph, profiles=[*ROWS, one])
    assert (single.num_profiles, double.num_profiles) == (1, 2)
    assert double.sha256 != single.sha256


def test_a_missing_profile_is_an_error_and_not_a_size_of_one(home: Home, tmp_path: Path) -> None:
    words = refusal(home, linear(tmp_path), profiles=[])
    assert "no profile, and inputs with free sizes: x" in words
    words = refusal(home, linear(tmp_path), profiles=[*ROWS, {}])
    assert "profile 1 has no shapes for input x (-1, 64)" in words


def test_all_misfits_of_all_profiles_are_listed(home: Home, tmp_path: Path) -> None:
    bad = {
        "x": ShapeRange((1, WIDTH), (4, WIDTH), (8, WIDTH - 1)),
        "z": ShapeRange((1,), (1,), (1,)),
    }
    falling = {"x": ShapeRange((4, WIDTH), (2, WIDTH), (8, WIDTH))}
    flat = {"x": ShapeRange((WIDTH,), (WIDTH,), (WIDTH,))}
    words = refusal(home, linear(tmp_path), profiles=[bad, falling, flat])
    assert "4 problems: " in words
    assert "profile 0: x is (-1, 64), given ((1, 64), (4, 64), (8, 63))" in words
    assert "profile 0: there is no input z; x are there" in words
    assert "profile 1: x is" in words
    assert "profile 2: x is" in words


def test_a_graph_without_free_sizes_needs_no_profile(home: Home, tmp_path: Path) -> None:
    text = "g (float16[4] x) => (float16[4] y) { y = Relu (x) }"
    plan = build(home, save_graph(tmp_path / "fixed.onnx", text), profiles=[])
    assert plan.num_profiles == 0


def test_an_input_that_the_builder_drops_is_an_error(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"""g (float16[N, {WIDTH}] x, int64[1] lengths) => (float16[N, {WIDTH}] y) {{
        y = Relu (x) }}"""
    graph = save_graph(tmp_path / "dropped.onnx", text)
    monkeypatch.setattr("engines.trt.network.unread_problems", lambda *_: [])
    assert "input lengths is read by no node" in refusal(home, graph)


def test_a_build_without_a_kernel_names_the_complaint_and_what_helps(
    home: Home, tmp_path: Path
) -> None:
    text = """g (float16[1, 2, 4, 512] x, float16[1, 2, 8, 512] k) => (float16[1, 2, 4, 512] y) {
        [attend] y = Attention (x, k, k) }"""
    parsed = parse_network(home, save_graph(tmp_path / "wide.onnx", text))
    (layer,) = [
        found
        for found in map(parsed.network.get_layer, range(parsed.network.num_layers))
        if found.type == home.trt.LayerType.ATTENTION_INPUT
    ]
    layer.__class__ = home.trt.IAttentionInputLayer
    layer.attention.decomposable = False
    with pytest.raises(UnsupportedError, match="not supported by a dedicated kernel") as caught:
        build_plan(parsed, parse_target("rtx:sm89"), [], tmp_path / "wide.plan")
    assert "(write the attention as products and a softmax)" in str(caught.value)
    assert not (tmp_path / "wide.plan").exists()


def test_progress_rises_and_ends_near_the_end(home: Home, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    parsed = parse_network(home, int8(tmp_path))
    build_plan(
        parsed,
        parse_target("rtx:sm89"),
        ROWS,
        tmp_path / "x.plan",
        lambda stage, done, total: calls.append((stage, done, total)),
    )
    done = [one for _, one, _ in calls]
    assert {(stage, total) for stage, _, total in calls} == {("build", 1000)}
    assert done == sorted(set(done))
    assert len(done) > 10
    assert 800 <= done[-1] <= 1000


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("the terminal is gone")])
def test_an_exception_in_the_progress_cancels_the_build(
    home: Home, tmp_path: Path, error: BaseException
) -> None:
    calls = []

    def fail(stage: str, done: int, total: int) -> None:
        calls.append(done)
        raise error

    parsed = parse_network(home, linear(tmp_path))
    with pytest.raises(type(error)) as caught:
        build_plan(parsed, parse_target("rtx:sm89"), ROWS, tmp_path / "x.plan", fail)
    assert caught.value is error
    assert len(calls) == 1
    assert list(tmp_path.glob("*.plan*")) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_any_callback_is_not_lost(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    parsed, finish = parse_network(home, linear(tmp_path)), PhaseTree.finish
    of_the_shell = signal.signal(number, signal.default_int_handler)  # or ignored behind `&`

    def press(phases: PhaseTree, name: str) -> None:
        signal.raise_signal(number)
        finish(phases, name)

    monkeypatch.setattr(PhaseTree, "finish", press)
    try:
        with pytest.raises(KeyboardInterrupt):
            build_plan(parsed, parse_target("rtx:sm89"), ROWS, tmp_path / "x.plan")
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, of_the_shell)
    assert list(tmp_path.glob("*.plan*")) == []


def test_a_limit_on_files_leaves_no_half_a_plan(home: Home, tmp_path: Path) -> None:
    graph = linear(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(CapacityError, match=r"linear_float16\.plan: larger than files may be"):
            build(home, graph)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.glob("*.plan*")) == []


def test_one_network_builds_for_several_targets_in_turn(home: Home, tmp_path: Path) -> None:
    parsed = parse_network(home, fp8(tmp_path))
    plans: list[BuiltPlan] = [
        build_plan(parsed, parse_target(target), ROWS, tmp_path / f"{index}.plan")
        for index, target in enumerate(("rtx:sm89", "rtx:sm120", "rtx:sm89"))
    ]
    assert [read_header(plan.path.read_bytes()).sms for plan in plans] == [(89,), (120,), (89,)]
    assert plans[0].sha256 == plans[2].sha256 != plans[1].sha256


def test_tensorrt_itself_does_not_notice_a_changed_plan(home: Home, tmp_path: Path) -> None:
    plan = build(home, linear(tmp_path))
    content = bytearray(plan.path.read_bytes())
    runtime = home.trt.Runtime(home.logger)
    whole = runtime.get_engine_validity(bytes(content))
    content[plan.size_bytes // 2] ^= 0xFF
    assert runtime.get_engine_validity(bytes(content)) == whole
    assert hashlib.sha256(content).hexdigest() != plan.sha256
