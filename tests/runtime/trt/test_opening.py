"""Plans that must not run: another TensorRT, another GPU, other bytes, a plan that is not taken."""

from pathlib import Path
from types import ModuleType

import onnx
import pytest

from runtime import Session
from runtime.artifact.folder import Artifact
from runtime.artifact.records import PlansRecord
from runtime.engine.trt.engine import TensorRTEngine
from runtime.engine.trt.package import check_device, load_package
from runtime.errors import ArtifactError, UnsupportedError
from tests.executing_trt import HostDevice, executing_package
from tests.robustness.tampering import put_in_place, read_fields, write_fields
from tests.runtime.conftest import PLANS_TARGET

from .conftest import make_engine


def record(package: str = "tensorrt_rtx", version: str = "0.9") -> PlansRecord:
    return PlansRecord(
        package=package, version=version, sms=("sm89", "sm120"), engines={}, wanted_precision=1.0
    )


def test_another_version_is_named_with_ours() -> None:
    import tensorrt_rtx

    here = tensorrt_rtx.__version__
    with pytest.raises(UnsupportedError, match=f"built with TensorRT-RTX 0.9, here is {here}; "):
        load_package(record())


def test_a_package_that_is_not_there_says_what_to_install() -> None:
    expected = r"TensorRT is not installed .*; pip install tensorrt==11.4"
    with pytest.raises(UnsupportedError, match=expected):
        load_package(record("tensorrt", "11.4"))


def test_a_package_of_another_name_is_never_imported() -> None:
    with pytest.raises(UnsupportedError, match="plans of 'os': known are tensorrt_rtx, tensorrt"):
        load_package(record("os"))


def test_another_gpu_is_named_with_those_that_were_built_for() -> None:
    check_device(record(), HostDevice(sm=120))
    with pytest.raises(UnsupportedError, match=r"sm89 and sm120, a double of a GPU is sm86; "):
        check_device(record(), HostDevice(sm=86))


def test_a_machine_without_a_gpu_says_so(built: Path) -> None:
    with pytest.raises(UnsupportedError, match="no CUDA driver"):
        Session.open(built, target=PLANS_TARGET)


def test_a_tampered_plan_is_never_deserialised(copied: Path) -> None:
    plan = copied / "engines" / "rtx-sm89+sm120" / "head.plan"
    content = bytearray(plan.read_bytes())
    content[len(content) // 2] ^= 1
    plan.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"head\.plan does not have the SHA-256"):
        Artifact.open(copied)


def test_a_plan_changed_after_the_check_is_not_loaded(built: Path, copied: Path) -> None:
    artifact, device = Artifact.open(copied), HostDevice()
    package = executing_package(artifact, PLANS_TARGET, device)
    plan = copied / "engines" / "rtx-sm89+sm120" / "vision.plan"
    plan.write_bytes(plan.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match=r"vision\.plan: does not have the SHA-256"):
        TensorRTEngine(artifact, PLANS_TARGET, package=package, device=device)


def test_a_plan_that_tensorrt_does_not_take_is_named(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, device = Artifact.open(built), HostDevice()
    package = executing_package(artifact, PLANS_TARGET, device)

    class Refusing:
        def __init__(self, logger: object) -> None:
            pass

        def deserialize_cuda_engine(self, content: bytes) -> None:
            assert content[:4] == b"vtrt"

    monkeypatch.setattr(package, "Runtime", Refusing)
    with pytest.raises(ArtifactError, match=r"\.plan: TensorRT does not load this plan"):
        TensorRTEngine(artifact, PLANS_TARGET, package=package, device=device)


def test_a_target_of_graphs_has_no_plans(built: Path) -> None:
    with pytest.raises(ArtifactError, match="target cpu has no plans of TensorRT"):
        TensorRTEngine(Artifact.open(built), "cpu", package=ModuleType("x"), device=HostDevice())


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("engines", "head", "path"), "../head.plan", "is used but not in `files`"),
        (("engines", "head", "weights"), [], "`targets.*.weights` must be dict"),
        (("wanted_precision",), "1", "must be float, found str"),
        (("sms",), [89], "must be str, found int"),
        (("engines",), {}, "the graphs of plans of"),
    ],
)
def test_a_wrong_record_of_plans_is_refused(
    place: tuple[str, ...], value: object, message: str, copied: Path
) -> None:
    fields = read_fields(copied)
    holder = fields["targets"][PLANS_TARGET]["plans"]
    for name in place[:-1]:
        holder = holder[name]
    holder[place[-1]] = value
    write_fields(copied, fields)
    with pytest.raises(ArtifactError, match=message):
        Artifact.open(copied)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "graphs/weights/none.bin"}, r"none\.bin' is used but not in `files`"),
        ({"offset": 1 << 30}, r"head: lm_head.weight ends at byte \d+ of .*, which has \d+"),
        ({"length": 64}, r"head: lm_head.weight has 196608 bytes, 64 are bound; these are not"),
    ],
)
def test_weights_that_are_not_bound_as_the_plan_takes_them_are_refused(
    change: dict[str, object], message: str, copied: Path
) -> None:
    fields = read_fields(copied)
    head = fields["targets"][PLANS_TARGET]["plans"]["engines"]["head"]
    head["weights"]["lm_head.weight"].update(change)
    write_fields(copied, fields)
    with pytest.raises(ArtifactError, match=message):
        make_engine(copied, HostDevice())


def test_plans_of_other_graphs_are_refused(copied: Path) -> None:
    fields = read_fields(copied)
    engines = fields["targets"][PLANS_TARGET]["plans"]["engines"]
    engines["head"]["path"] = engines["projector"]["path"]
    del engines["layer_00"]["weights"]["self_attn.q_proj.weight"]
    write_fields(copied, fields)
    with pytest.raises(ArtifactError) as caught:
        make_engine(copied, HostDevice())
    assert "head takes no hidden, lm_head.weight, model.norm.weight, rows and also" in str(
        caught.value
    )
    assert "layer_00 takes also self_attn.q_proj.weight" in str(caught.value)


def test_a_head_that_does_not_choose_is_refused(copied: Path) -> None:
    name = "engines/rtx-sm89+sm120/head.onnx"  # what the double runs
    model = onnx.load(copied / name, load_external_data=False)
    del model.graph.output[1:]
    put_in_place(copied, name, model.SerializeToString())
    with pytest.raises(ArtifactError, match=r"head gives no best, energy; .*build .* again"):
        make_engine(copied, HostDevice())
