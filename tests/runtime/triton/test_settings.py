"""Parameters of the conversational model, and when it is ready."""

from types import SimpleNamespace
from typing import Any

import pytest

from runtime.errors import InputError, UnsupportedError
from runtime.scheduling.options import SchedulerOptions
from runtime.triton.model import ConversationModel
from runtime.triton.settings import Settings

REQUIRED = {"artifact": "artifact", "manifest_sha256": "0" * 64, "target": "cpu"}


def config(**parameters: str) -> dict[str, Any]:
    values = {name: {"string_value": value} for name, value in parameters.items()}
    return {"name": "kimi_vl", "parameters": values, "instance_group": [{"count": 1}]}


def test_what_is_left_out_is_the_schedulers_own() -> None:
    settings = Settings.from_config(config(**REQUIRED))
    assert settings.scheduler == SchedulerOptions()
    assert (settings.num_threads, settings.release) == (None, None)
    given = {"max_queued": "3", "chunk_beside_decoding": "64", "image_cache_bytes": "0"}
    settings = Settings.from_config(
        config(**REQUIRED, **given, threads="2", release="thinking-2506")
    )
    assert settings.scheduler == SchedulerOptions(
        max_queued=3, chunk_beside_decoding=64, image_cache_bytes=0
    )
    assert (settings.num_threads, settings.release) == (2, "thinking-2506")


def test_images_have_a_limit_and_the_servers_own_parameters_pass() -> None:
    own = {"EXECUTION_ENV_PATH": "/env.tar.gz", "FORCE_CPU_ONLY_INPUT_TENSORS": "yes"}
    assert Settings.from_config(config(**REQUIRED, **own)).max_images == 32
    assert Settings.from_config(config(**REQUIRED, max_images="0")).max_images == 0
    one_gpu = {"instance_group": [{"count": 1, "gpus": [3]}]}
    assert Settings.from_config(config(**REQUIRED) | one_gpu).name == "kimi_vl"


def test_all_wrong_parameters_are_named_at_once() -> None:
    wrong = {"artifact": "", "target": "cpu", "max_queued": "many", "threads": "-1", "slots": "3"}
    with pytest.raises(InputError) as raised:
        Settings.from_config(config(**wrong))
    assert str(raised.value) == (
        "parameters of kimi_vl: 5 problems: artifact is missing; manifest_sha256 is missing; slots "
        "is not known; max_queued: expected a whole number, found 'many'; threads: expected a "
        "whole number, found '-1'"
    )
    with pytest.raises(InputError, match="max_queued: expected an integer of at least 1"):
        Settings.from_config(config(**REQUIRED, max_queued="0"))


@pytest.mark.parametrize(
    "groups",
    [[{"count": 2}], [{"count": 1}, {"count": 1}], [{"count": 1, "gpus": [0, 1]}]],
)
def test_more_than_one_instance_is_refused(groups: list[dict[str, Any]]) -> None:
    with pytest.raises(UnsupportedError, match="2 instances: one holds the weights"):
        Settings.from_config(config(**REQUIRED) | {"instance_group": groups})


@pytest.mark.parametrize(("failures", "is_ready"), [(0, True), (2, True), (3, False)])
def test_a_model_whose_steps_keep_failing_is_not_ready(failures: int, is_ready: bool) -> None:
    model = ConversationModel()
    stats = SimpleNamespace(failures_in_a_row=failures)
    model._scheduler = SimpleNamespace(stats=lambda: stats)  # type: ignore[assignment]  # a double
    assert model.is_ready() is is_ready
