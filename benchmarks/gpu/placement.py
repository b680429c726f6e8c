"""Which nodes ONNX Runtime's CUDA provider takes of an artifact's graphs, told without a GPU.

    python -m venv out/gpu && out/gpu/bin/pip install onnxruntime-gpu
    python -m benchmarks.gpu.placement ARTIFACT --packages out/gpu/lib/python3.11/site-packages

The provider of the real package is loaded over stand-ins for CUDA's libraries, and every graph that
the engine opens becomes a session. Nothing is computed. Ends in 1 if a graph that is to be recorded
would not be: the provider refuses graphs with copies between host and device in them.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from runtime import names
from runtime.artifact.folder import Artifact
from runtime.errors import KimiVLError, UnsupportedError

from .stand_in import write_stand_ins

_PROVIDER = Path("onnxruntime") / "capi" / "libonnxruntime_providers_cuda.so"
_ROOT = Path(__file__).resolve().parents[2]
_NODE = re.compile(r"VerifyEachNodeIsAssignedToAnEp\]\s+(\w+) \(")
_GROUP = re.compile(r"Node\(s\) placed on \[(\w+)ExecutionProvider\]")
_ALL = re.compile(r"All nodes placed on \[CUDAExecutionProvider\]\. Number of nodes: (\d+)")
_RECORDS = "will use the graph capture feature"


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the nodes of a graph run."""

    cuda: int
    """Nodes that the provider takes."""
    cpu: dict[str, int]
    """Nodes that are left to the CPU, by op: arithmetic on shapes, if all is well."""
    copies: int
    """Between host and device."""
    is_recorded: bool
    """Whether the provider would record runs of it as a CUDA graph."""


def main(words: Sequence[str]) -> int:
    """Print placements as JSON; 1 if the decoder would not be recorded or nothing could be told."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.placement")
    parser.add_argument("artifact", type=Path)
    add_packages(parser)
    given = parser.parse_args(words)
    try:
        found = placements(Artifact.open(given.artifact), given.packages)
    except KimiVLError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    shown = {name: asdict(one) for name, one in found.items()}
    sys.stdout.write(json.dumps(shown, indent=1) + "\n")
    return 0 if found[names.DECODER].is_recorded else 1


def add_packages(parser: argparse.ArgumentParser) -> None:
    """Let a user say where onnxruntime-gpu is; beside this Python's packages, if left out."""
    here = Path(sysconfig.get_path("purelib"))
    parser.add_argument("--packages", type=Path, default=here, help="that hold onnxruntime-gpu")


def placements(artifact: Artifact, packages: Path) -> dict[str, Placement]:
    """Open the graphs of target `cuda` over stand-ins.

    Raises:
        UnsupportedError: there is no onnxruntime-gpu, or a graph is refused.
        ArtifactError: the artifact was not built for the target.
    """
    record = artifact.target("cuda")
    paths = {
        name: artifact.folder / record.graphs[name] for name in (names.VISION, names.PROJECTOR)
    }
    paths[names.DECODER] = decoder_of(artifact)
    return {name: read_log(run_session(packages, path)) for name, path in paths.items()}


def decoder_of(artifact: Artifact) -> Path:
    """Give the joined graph of target `cuda`.

    Raises:
        ArtifactError: the artifact was not built for the target.
    """
    return artifact.folder / str(artifact.target("cuda").decoder)


def run_session(packages: Path, graph: Path, *sizes: str) -> str:
    """Open a graph over stand-ins, in a process of its own, and give what stands on its stderr.

    Args:
        packages: that hold onnxruntime-gpu.
        graph: a file.
        sizes: of a step to record: slots, and tokens that attention reads.

    Raises:
        UnsupportedError: there is no onnxruntime-gpu, or it refuses the graph.
    """
    provider = packages / _PROVIDER
    if not provider.exists():
        raise UnsupportedError(f"{packages}: no onnxruntime-gpu; give its folder by --packages")
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu.stand_in_session",
        str(graph.resolve()),
        *sizes,
    ]
    with tempfile.TemporaryDirectory() as folder:
        write_stand_ins(provider, Path(folder))
        paths = {"LD_LIBRARY_PATH": folder, "PYTHONPATH": f"{packages.resolve()}:{_ROOT}"}
        environment = {**os.environ, **paths}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise UnsupportedError(f"{graph}: {last}")
    return done.stderr


def read_log(text: str) -> Placement:
    """Read what ONNX Runtime 1.31 says at its most talkative."""
    counts: dict[str, Counter[str]] = {}
    group = ""
    for line in text.splitlines():
        started = _GROUP.search(line)
        if started:
            group = started[1]
        node = _NODE.search(line)
        if node:
            counts.setdefault(group, Counter())[node[1]] += 1
    everything = _ALL.search(text)  # then they are not listed
    on_cuda = counts.get("CUDA", Counter())
    copies = sum(count for ops in counts.values() for op, count in ops.items() if "Memcpy" in op)
    return Placement(
        cuda=int(everything[1]) if everything else on_cuda.total(),
        cpu=dict(sorted(counts.get("CPU", Counter()).items())),
        copies=copies,
        is_recorded=_RECORDS in text,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
