"""llama.cpp as a peer: one warm process that measures when it is asked to.

    python -m benchmarks.cpu.llama_cpp build [FOLDER]            FOLDER is out/peers/llama.cpp
    python -m benchmarks.cpu.llama_cpp measure [q4_0|q8_0]       some figures, unpaired

`build` needs cmake, make, g++ and the network once. `measure` writes a random model if there is
none. A benchmark keeps a `LlamaCpp` open and asks it in turn with what it is compared with: while
it waits, its threads sleep.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

from runtime.errors import KimiVLError

from .gguf_file import Form
from .gguf_model import default_path, write_released_sizes
from .llama_build import build_llama

FOLDER = Path("out/peers/llama.cpp")
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Puts the weights on pages of 2 MiB, which is to llama.cpp's advantage."""


class LlamaCpp:
    """A model in a process of its own, with a cache that is filled once and cut as needed."""

    def __init__(self, process: "subprocess.Popen[str]", gguf: Path) -> None:
        self._process = process
        self._gguf = gguf
        ready = self._read()
        self.ggml_version: str = ready["ggml"]
        self.cpu_features: str = ready["system"]
        """What the build uses, in llama.cpp's words."""

    @classmethod
    def open(
        cls,
        gguf: Path,
        *,
        folder: Path = FOLDER,
        threads: int = 2,
        flash_attention: bool = True,
        max_depth: int = 8192,
    ) -> "LlamaCpp":
        """Load a model, which takes half a minute at the released sizes.

        Args:
            gguf: the model. What fills its cache is kept beside it, `.DEPTH.fa1.state`.
            folder: where `build` has put the driver.
            threads: for decoding and prefill.
            flash_attention: whether attention is one fused operator.
            max_depth: the most tokens that are in the cache before what is measured. The first
                process to need any fills it by a prefill of so many tokens: ten minutes for 8192.

        Raises:
            KimiVLError: the driver is not built, or llama.cpp refuses the model.
        """
        driver = folder.absolute() / "llama_driver"
        if not driver.exists():
            raise KimiVLError(
                f"{driver} is missing: run python -m benchmarks.cpu.llama_cpp build {folder}"
            )
        attention = str(int(flash_attention))
        state = gguf.with_suffix(f".{max_depth}.fa{attention}.state")
        if state.exists() and state.stat().st_mtime_ns < gguf.stat().st_mtime_ns:
            state.unlink()  # of an older model of the same name
        process = subprocess.Popen(
            [driver, gguf, state, str(threads), attention, str(max_depth)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **HUGE_PAGES},
        )
        return cls(process, gguf)

    def decode(self, depth: int, tokens: int) -> list[float]:
        """Decode random tokens one by one: seconds for each.

        Args:
            depth: tokens in the cache before the first.
            tokens: how many.

        Raises:
            KimiVLError: the cache is too small, a logit is not finite, or the process ended.
        """
        return self._ask("decode", tokens, depth)

    def prefill(self, tokens: int, depth: int = 0) -> float:
        """Run random tokens as one batch behind `depth` others: seconds in all.

        Raises:
            KimiVLError: as `decode`.
        """
        return self._ask("prefill", tokens, depth)[0]

    def close(self) -> None:
        """End the process; its memory is free afterwards."""
        if self._process.stdin and self._process.stdout:
            self._process.stdin.close()
            self._process.wait()
            self._process.stdout.close()

    def __enter__(self) -> "LlamaCpp":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, verb: str, tokens: int, depth: int) -> list[float]:
        if self._process.stdin is None or self._process.stdin.closed:
            raise KimiVLError(f"{self._gguf}: llama.cpp is closed: open it again")
        if self._process.poll() is None:
            self._process.stdin.write(f"{verb} {tokens} {depth}\n")
            self._process.stdin.flush()
        seconds: list[float] = self._read()["seconds"]
        return seconds

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            self.close()
            status = self._process.returncode
            raise KimiVLError(f"{self._gguf}: llama.cpp ended with status {status}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise KimiVLError(f"{self._gguf}: {answer['error']}")
        return answer


def measure(form: Form) -> str:
    """Measure a few figures alone, for a look; comparisons are made in pairs elsewhere."""
    lines = []
    with LlamaCpp.open(write_released_sizes(form, default_path(form)), max_depth=4096) as llama:
        for depth in (0, 1024, 4096, 0, 1024, 4096):
            seconds = median(llama.decode(depth, 24))
            lines.append(f"decode at {depth}: {1 / seconds:.2f} tok/s")
        lines += [f"prefill 512: {512 / llama.prefill(512):.1f} tok/s" for _ in range(2)]
    return "\n".join(lines) + "\n"


def main(words: list[str]) -> int:
    """Build or measure; 2 for words that are not understood."""
    match words:
        case ["build"]:
            text = f"{build_llama(FOLDER)}\n"
        case ["build", folder]:
            text = f"{build_llama(Path(folder))}\n"
        case ["measure"] | ["measure", "q4_0"]:
            text = measure("q4_0")
        case ["measure", "q8_0"]:
            text = measure("q8_0")
        case _:
            sys.stderr.write(f"{__doc__}\n")
            return 2
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
