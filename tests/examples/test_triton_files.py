"""The Dockerfile and the Kubernetes example name what the server has."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from engines.triton.repository import RepositoryOptions
from tests.triton_server import reason_to_skip, server_help

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "triton"


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text()))


def container() -> dict[str, Any]:
    found: dict[str, Any] = documents()[0]["spec"]["template"]["spec"]
    return found


def command_of_dockerfile() -> list[str]:
    (line,) = re.findall(r"^CMD (.+)$", (FOLDER / "Dockerfile").read_text(), re.MULTILINE)
    return [word.strip(",") for word in shlex.split(line.strip("[]"))]


def test_every_flag_is_one_of_the_servers() -> None:
    reason = reason_to_skip()
    if reason is not None:
        pytest.skip(reason)
    known = set(re.findall(r"--([a-z-]+)", server_help()))
    calls = [command_of_dockerfile(), container()["containers"][0]["args"]]
    for program, *flags in calls:
        assert program == "tritonserver"
        assert {flag.removeprefix("--").partition("=")[0] for flag in flags} <= known


def test_the_service_finds_the_containers_and_the_time_to_end_is_enough() -> None:
    deployment, service = documents()
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    (triton,) = container()["containers"]
    ports = {port["name"] for port in triton["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    (seconds,) = (flag.partition("=")[2] for flag in triton["args"] if "exit-timeout" in flag)
    assert container()["terminationGracePeriodSeconds"] > int(seconds)


def test_what_is_mounted_is_there_and_where_the_server_looks() -> None:
    (triton,) = container()["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in triton["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in container()["volumes"]}
    assert f"--model-repository={mounts['models']}" in triton["args"]
    assert mounts["dshm"] == "/dev/shm"


def test_the_shell_of_the_dockerfile_is_well_formed() -> None:
    text = (FOLDER / "Dockerfile").read_text()
    (command,) = re.findall(r"^RUN (.+?)(?<!\\)\n", text, re.MULTILINE | re.DOTALL)
    done = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_readiness_is_asked_of_the_model_that_the_tool_names() -> None:
    probe = container()["containers"][0]["readinessProbe"]["httpGet"]
    assert probe["path"] == f"/v2/models/{RepositoryOptions().name}/ready"
