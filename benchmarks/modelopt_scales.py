"""Compare our scales and rounded values with those of nvidia-modelopt, an independent work.

python -m benchmarks.modelopt_scales [FILE]      FILE gets modelopt's numbers, for the tests

modelopt lives in an environment of its own, `build/modelopt-venv`, which is made at the first run.
It needs two packages that it does not ask for (requests and huggingface_hub).
"""

import base64
import hashlib
import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.quantised.codes import LARGEST, round_to
from export.quantised.matrix import rounded, scales_for, storable
from export.recipe.recipe import WeightFormat

Array = NDArray[np.float32]

VENV = Path("build/modelopt-venv")
PACKAGES = ("nvidia-modelopt==0.47.0", "requests", "huggingface_hub")
WORKER = Path(__file__).with_name("modelopt_worker.py")

FORMS = {
    "int8": WeightFormat(codes="int8"),
    "fp8": WeightFormat(codes="fp8"),
    "int4/128": WeightFormat(codes="int4", group=128),
    "nvfp4/16": WeightFormat(codes="nvfp4", group=16),
}
WHOLE_TENSOR = {"int8 tensor": "int8", "fp8 tensor": "fp8"}
"""Formats of activations: one scale for all."""
KINDS = ("normal", "heavy", "outlier")
SMALL, LARGE = (256, 3), (1024, 256)
SEED = 20
BASES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """One matrix in one format."""

    scale: Array
    """(groups, N), or () for a whole tensor; of NVFP4 the FP8 part."""
    values: Array
    """(K, N)."""
    whole: Array | None = None
    """(), only in NVFP4."""

    def factors(self) -> Array:
        """What codes are multiplied by."""
        return self.scale if self.whole is None else np.asarray(self.scale * self.whole)

    def quotients(self) -> Array:
        """Values over factors: what the codes are; zero where the factor is."""
        factors = self.factors()
        if factors.ndim:
            factors = np.repeat(factors, len(self.values) // len(factors), axis=0)
        factors = np.broadcast_to(factors, self.values.shape)
        quotients = np.zeros_like(self.values)
        np.divide(self.values, factors, out=quotients, where=factors > 0)
        return quotients


def main(target: Path | None) -> None:
    """Round the same matrices on both sides and print how far they are apart."""
    matrices = {f"small {kind}": seeded_matrix(kind, *SMALL) for kind in KINDS}
    matrices |= {f"large {kind}": seeded_matrix(kind, *LARGE) for kind in KINDS}
    found = ask_modelopt(matrices)
    sys.stdout.write(f"nvidia-modelopt {found['version']}\n")
    sys.stdout.write("\n".join(table(matrices, found)) + "\n")
    if target is not None:
        target.write_text(json.dumps(as_golden(matrices, found), indent=1) + "\n")


def seeded_matrix(kind: str, inputs: int, outputs: int) -> Array:
    """Give the same bits with every version of numpy: sums and products of whole numbers.

    Args:
        kind: `normal`; `heavy`, its cube; `outlier`, with a column of zeros, another of 1e-6, and
            one weight of 1000.
        inputs: K.
        outputs: N.
    """
    raw = np.random.PCG64(SEED + KINDS.index(kind)).random_raw(12 * inputs * outputs)
    uniform = (raw >> np.uint64(40)).astype(np.int64)  # 24 bits
    sums = uniform.reshape(12, inputs, outputs).sum(axis=0) - 6 * 2**24
    normal = sums.astype(np.float64) * 2.0**-24
    if kind == "heavy":
        normal = normal * normal * normal
    if kind == "outlier":
        normal[:, 0] = 0.0
        normal[:, 1] *= 1e-6
        normal[3, 2] = 1000.0
    return np.asarray(normal, dtype=np.float32)


def our_rounding(matrix: Array, form: str, base: torch.dtype) -> Rounded:
    """Round as the export does with weights, and calibration with activations."""
    weight = torch.from_numpy(matrix)
    if form in WHOLE_TENSOR:
        codes = WHOLE_TENSOR[form]
        step = storable(weight.abs().amax() / LARGEST[codes], base).float()
        values = round_to(weight / step, codes) * step
        return Rounded(scale=step.numpy(), values=values.numpy())
    scales = scales_for(weight, FORMS[form], base)
    return Rounded(
        scale=scales.step.float().numpy(),
        values=rounded(weight, scales, FORMS[form]).numpy(),
        whole=None if scales.whole is None else scales.whole.numpy(),
    )


def ask_modelopt(matrices: dict[str, Array]) -> dict[str, Any]:
    """Run the worker in its environment."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.npz"), Path(folder, "out.npz")
        np.savez(source, allow_pickle=False, **matrices)
        command = [str(_environment()), str(WORKER), str(source), str(target)]
        subprocess.run(command, check=True, capture_output=True)
        with np.load(target) as found:
            return dict(found)


def _environment() -> Path:
    """Give the Python that has modelopt; torch goes first, so that it is the toolkit's version."""
    stamp, python = VENV / "ready", VENV / "bin" / "python"
    if not stamp.exists():
        sys.stderr.write(f"Making {VENV}; this takes some minutes once ...\n")
        venv.create(VENV, with_pip=True, clear=True)
        for packages in (("torch==" + torch.__version__.partition("+")[0],), PACKAGES):
            command = [str(python), "-m", "pip", "install", "-qq", *packages]
            subprocess.run(command, check=True)
        stamp.touch()
    return python


def theirs(found: dict[str, Any], name: str, form: str) -> Rounded:
    """Give modelopt's result of one matrix in one format."""
    key = f"{name}/{form}"
    return Rounded(
        scale=found[f"{key}/scale"],
        values=found[f"{key}/values"],
        whole=found.get(f"{key}/whole"),
    )


def table(matrices: dict[str, Array], found: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each large matrix, format, and type of our scales."""
    yield f"{'matrix':15} {'format':12} {'scales':9} {'apart':>9} {'codes':>8}  mean square error"
    for name, matrix in matrices.items():
        for form in (*FORMS, *WHOLE_TENSOR) if name.startswith("large") else ():
            other = theirs(found, name, form)
            for base in BASES[: 1 if form == "nvfp4/16" else None]:
                ours = our_rounding(matrix, form, base)
                yield (
                    f"{name:15} {form:12} {str(base).removeprefix('torch.'):9} "
                    f"{_scale_distance(ours, other):9.1e} {other_codes(ours, other).mean():8.3%}  "
                    f"ours {_loss(ours, matrix):.5e}  theirs {_loss(other, matrix):.5e}"
                )


def _scale_distance(ours: Rounded, other: Rounded) -> float:
    """Largest relative distance of two scales, but for groups of zeros."""
    first, second = np.atleast_1d(ours.factors()), np.atleast_1d(other.factors())
    used = (first > 0) & (second > 0)
    return float((np.abs(first - second)[used] / second[used]).max())


def other_codes(ours: Rounded, other: Rounded) -> NDArray[np.bool_]:
    """Say of each value whether its code is another one, (K, N)."""
    first, second = ours.quotients(), other.quotients()
    # Neighbours among the codes are at least 1 / 127 apart, quotients of equal ones 1e-6.
    return np.asarray(np.abs(first - second) > 0.004 * np.maximum(np.abs(first), np.abs(second)))


def _loss(one: Rounded, matrix: Array) -> float:
    return float(np.square(one.values.astype(np.float64) - matrix).mean())


def as_golden(matrices: dict[str, Array], found: dict[str, Any]) -> dict[str, Any]:
    """Lay modelopt's numbers on small matrices out for a file: scales as hexadecimal floats."""
    results: dict[str, Any] = {}
    for kind in KINDS:
        name = f"small {kind}"
        forms = {form: _golden_result(found, name, form) for form in (*FORMS, *WHOLE_TENSOR)}
        results[kind] = {"sha256": digest(matrices[name]), "shape": list(SMALL), **forms}
    return {
        "modelopt": str(found["version"]),
        "made_by": "python -m benchmarks.modelopt_scales tests/export/golden/modelopt.json",
        "seed": SEED,
        "values": "little-endian fp32 (K, N) in base64",
        "matrices": results,
    }


def _golden_result(found: dict[str, Any], name: str, form: str) -> dict[str, Any]:
    other = theirs(found, name, form)
    result: dict[str, Any] = {
        "amax": " ".join(hexes(found[f"{name}/{form}/amax"])),
        "scale": " ".join(hexes(other.scale)),
        "values": base64.b64encode(other.values.astype("<f4").tobytes()).decode(),
    }
    return result if other.whole is None else {**result, "whole": " ".join(hexes(other.whole))}


def hexes(values: Array) -> list[str]:
    """Write numbers exactly."""
    return [float(value).hex().replace("0000000p", "p") for value in values.flat]


def digest(matrix: Array) -> str:
    """Tell a matrix from others."""
    return hashlib.sha256(matrix.astype("<f4").tobytes()).hexdigest()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
