"""What calibration found for one graph, in one safetensors file.

Tensors by parameter: `NAME#step` and `NAME#whole` (scales of the codes), `NAME#input` (scale of
what meets it, one number), and for any parameter, quantised or not, what balancing multiplies it by
before anything else: `NAME#inputs_factor`, `NAME#outputs_factor`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import load_file, save
from torch import Tensor

from runtime.artifact.records import FileRecord
from runtime.files import write_bytes

from .factor import Factor
from .matrix import Scales


@dataclass(frozen=True, kw_only=True)
class GraphScales:
    """Everything found for one graph; keys are names of parameters."""

    weights: Mapping[str, Scales] = field(default_factory=dict)
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    """() in the base type; for NVFP4 fp32, the whole tensor's factor."""
    factors: Mapping[str, Factor] = field(default_factory=dict)

    def write(self, path: Path) -> FileRecord:
        """Write the file; the same scales give the same bytes."""
        tensors: dict[str, Tensor] = {}
        for name, scales in self.weights.items():
            tensors[f"{name}#step"] = scales.step
            if scales.whole is not None:
                tensors[f"{name}#whole"] = scales.whole
        tensors |= {f"{name}#input": value for name, value in self.inputs.items()}
        for name, factor in self.factors.items():
            if factor.inputs is not None:
                tensors[f"{name}#inputs_factor"] = factor.inputs
            if factor.outputs is not None:
                tensors[f"{name}#outputs_factor"] = factor.outputs
        write_bytes(
            path, save({name: tensors[name].clone().contiguous() for name in sorted(tensors)})
        )
        return FileRecord.of(path)

    @classmethod
    def read(cls, path: Path) -> "GraphScales":
        """Read what `write` wrote."""
        tensors = load_file(path)

        def named(suffix: str) -> dict[str, Tensor]:
            return {
                name.removesuffix(suffix): tensor
                for name, tensor in tensors.items()
                if name.endswith(suffix)
            }

        wholes = named("#whole")
        before, behind = named("#inputs_factor"), named("#outputs_factor")
        return cls(
            weights={
                name: Scales(step=step, whole=wholes.get(name))
                for name, step in named("#step").items()
            },
            inputs=named("#input"),
            factors={
                name: Factor(inputs=before.get(name), outputs=behind.get(name))
                for name in sorted(before.keys() | behind.keys())
            },
        )
