"""A real `tritonserver`, from the wheel nvidia-pytriton, on loopback, for tests.

`make .venv/.triton` installs it with what its Python stub needs, in an environment of its own.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# It lies beside the stamp that `make` leaves when all is installed.
PREFIX = Path(os.environ.get("KIMIVL_TRITON", Path(sys.prefix) / "triton")).resolve()
_START_S = 120.0
_STOP_S = 30.0
_SHARED = Path("/dev/shm")


@dataclass(frozen=True, kw_only=True)
class TritonServer:
    """One that runs."""

    pid: int
    http: str
    """host:port"""
    grpc: str
    metrics: str
    log: Path

    def scrape(self) -> dict[str, float]:
        """Give the metrics: name with labels to value."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=10) as page:
            lines = page.read().decode().splitlines()
        words = [line.rsplit(" ", 1) for line in lines if line and not line.startswith("#")]
        return {name: float(value) for name, value in words}


def reason_to_skip() -> str | None:
    """Say why there is no server here, or nothing."""
    if not PREFIX.with_name(".triton").is_file():
        return f"no whole tritonserver in {PREFIX}: make .venv/.triton"
    return None


def server_help() -> str:
    """Give what the server says of its flags."""
    program = _server_home() / "bin" / "tritonserver"
    done = subprocess.run([program, "--help"], env=_environment(), capture_output=True, text=True)
    return done.stdout + done.stderr


@contextmanager
def running_server(repository: Path, *, log: Path, models: Sequence[str]) -> Iterator[TritonServer]:
    """Start a server with some models loaded, and stop it by its pid.

    Raises:
        RuntimeError: it does not get ready; the end of its log is in the message.
    """
    http, grpc, metrics = (f"127.0.0.1:{port}" for port in _free_ports(3))
    prefix = f"kimivl_test_{os.getpid()}_{http.rpartition(':')[2]}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            _command(repository, models, (http, grpc, metrics), prefix),
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        _wait_until_ready(process, http, log)
        yield TritonServer(pid=process.pid, http=http, grpc=grpc, metrics=metrics, log=log)
    finally:
        _stop(process)
        for left in _SHARED.glob(f"{prefix}*"):
            left.unlink(missing_ok=True)


def _site() -> Path:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return PREFIX / "lib" / version / "site-packages"


def _server_home() -> Path:
    return _site() / "pytriton" / "tritonserver"


def _command(
    repository: Path, models: Sequence[str], addresses: tuple[str, str, str], shared: str
) -> list[str]:
    home = _server_home()
    words = [str(home / "bin" / "tritonserver")]
    words += [f"--model-repository={repository}", "--model-control-mode=explicit"]
    words += [f"--load-model={one}" for one in models]
    for kind, address in zip(("http", "grpc", "metrics"), addresses, strict=True):
        host, _, port = address.rpartition(":")
        words += [f"--{kind}-address={host}", f"--{kind}-port={port}"]
    return [
        *words,
        f"--backend-directory={home / 'backends'}",
        f"--cache-directory={home / 'caches'}",
        f"--backend-config=python,shm-region-prefix-name={shared}",
        "--allow-gpu-metrics=false",
        "--allow-cpu-metrics=false",
        "--disable-auto-complete-config",
        "--exit-timeout-secs=5",
    ]


def _environment() -> dict[str, str]:
    """Point the stub, which embeds Python, to the environment by PATH; it reads no PYTHONPATH."""
    found = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    libraries = [str(_site() / "nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR")]
    return found | {
        "PATH": f"{PREFIX / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "LD_LIBRARY_PATH": os.pathsep.join(libraries),
        "OMP_NUM_THREADS": "1",
        "KIMIVL_OPS": "off",
    }


def _free_ports(count: int) -> list[int]:
    """Let the system choose ports; nobody else should take them before the server does."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _wait_until_ready(process: "subprocess.Popen[bytes]", http: str, log: Path) -> None:
    end = time.monotonic() + _START_S
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://{http}/v2/health/ready", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    tail = log.read_text(errors="replace")[-3000:]
    raise RuntimeError(f"tritonserver is not ready (exit status {process.poll()}):\n{tail}")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def install() -> None:
    """Finish an installation: programs are made executable, the stub put in its place."""
    home = _server_home()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = home / "python_backend_stubs" / version / "triton_python_backend_stub"
    placed = home / "backends" / "python" / stub.name
    shutil.copy(stub, placed)
    for program in (placed, home / "bin" / "tritonserver"):
        program.chmod(0o755)


if __name__ == "__main__":
    install()
