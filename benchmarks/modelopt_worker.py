"""Round matrices with nvidia-modelopt; runs alone, in an environment that has it.

python modelopt_worker.py IN.npz OUT.npz      IN holds matrices (K, N) fp32 by name

OUT holds, for each MATRIX and format, `MATRIX/FORMAT/amax`, `.../scale` and `.../values`; scales
are (groups, N), or one number, and values (K, N), all fp32. NVFP4 has `.../whole` too.
"""

import importlib
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

_QUANTISERS: dict[str, dict[str, Any]] = {
    "int8": {"num_bits": 8, "axis": 0},
    "int8 tensor": {"num_bits": 8, "axis": None},
    "fp8": {"num_bits": (4, 3), "axis": 0},
    "fp8 tensor": {"num_bits": (4, 3), "axis": None},
    "int4/128": {"num_bits": 4, "block_sizes": {-1: 128}},
}
_PACKAGE = "modelopt.torch.quantization"


def main(source: str, target: str) -> None:
    """Round every matrix in every format."""
    found: dict[str, Any] = {"version": importlib.import_module("modelopt").__version__}
    with np.load(source) as matrices:
        for name, matrix in matrices.items():
            weight = torch.from_numpy(matrix).T.contiguous()  # (N, K), as torch's Linear has it
            results = {form: _calibrated(weight, **how) for form, how in _QUANTISERS.items()}
            results["nvfp4/16"] = _two_level(weight)
            for form, tensors in results.items():
                found |= {f"{name}/{form}/{key}": x.numpy() for key, x in tensors.items()}
    np.savez(target, **found)


def _calibrated(weight: Tensor, **attributes: Any) -> dict[str, Tensor]:  # noqa: ANN401  # theirs
    """Let modelopt's fake quantiser see a matrix, then round it."""
    config = importlib.import_module(f"{_PACKAGE}.config")
    nn = importlib.import_module(f"{_PACKAGE}.nn")
    quantizer = nn.TensorQuantizer(config.QuantizerAttributeConfig(**attributes))
    quantizer.disable_quant()
    quantizer.enable_calib()
    quantizer(weight)
    quantizer.load_calib_amax()
    quantizer.enable_quant()
    quantizer.disable_calib()
    amax = quantizer.amax.float()
    amax = amax.reshape(len(weight), -1).T if amax.numel() > 1 else amax
    return {"amax": amax, "scale": amax / quantizer.maxbound, "values": quantizer(weight).T}


def _two_level(weight: Tensor) -> dict[str, Tensor]:
    """Round to NVFP4 through modelopt's packed tensor; its fake quantiser needs a GPU."""
    packed_type = importlib.import_module(f"{_PACKAGE}.qtensor.nvfp4_tensor").NVFP4QTensor
    packed, step, whole = packed_type.quantize(weight.clone(), 16)
    values = packed.dequantize(torch.float32, scale=step, double_scale=whole, block_sizes={-1: 16})
    return {
        "amax": weight.abs().reshape(len(weight), -1, 16).amax(dim=-1).T,
        "scale": step.float().T,
        "whole": whole.reshape(()),
        "values": values.T,
    }


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
