"""A random decoder in llama.cpp's file format: the shapes of the release, values that stay tame.

    python -m benchmarks.cpu.gguf_model q4_0|q8_0 [FILE]

Needs no checkpoint and little memory; writes 9.0 GB for q4_0 and 17.0 GB for q8_0. FILE is
out/peers/kimi-vl-FORM.gguf if it is left out.

All matrices have the one format (`llama-quantize --pure`), the embedding and the head too: it is
what makes llama.cpp read the fewest bytes. `kv_b` is in two halves, which is what makes it take
attention over the latent cache.

Source: `conversion/deepseek.py` and `src/models/deepseek2.cpp` of llama.cpp.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.synthetic.configs import FULL_CONFIG
from runtime.config import DecoderConfig, KimiVLConfig
from runtime.files import replacing

from .gguf_file import BLOCKS, Form, TensorInfo, Value, write_header, write_tensor

ARCHITECTURE = "deepseek2"
SIGMOID = 2
"""`LLAMA_EXPERT_GATING_FUNC_TYPE_SIGMOID`: the routing with a bias of DeepSeek-V3."""
FILE_TYPES: dict[Form, int] = {"f32": 0, "q4_0": 2, "q8_0": 7}
"""`llama_ftype`, only shown."""
CODE_DEVIATIONS: dict[Form, float] = {"q4_0": 4.637, "q8_0": 73.9}
"""Standard deviation of random codes: 0 to 15 around 8; -128 to 127, cut at -127."""
PIECE_BLOCKS = 1 << 20
SIGN_BIT = 0x8000


@dataclass(frozen=True, kw_only=True)
class RandomTensor:
    """A tensor with the distribution of its values."""

    info: TensorInfo
    deviation: float
    mean: float = 0.0


def write_random_model(path: Path, config: DecoderConfig, form: Form, *, seed: int = 0) -> None:
    """Write the decoder with random values; the same seed gives the same bytes.

    Args:
        path: the file, which appears when it is complete.
        config: all sizes. llama.cpp takes a decoder without `q_a` for this architecture only if
            it has 27 layers.
        form: of the matrices; norms and routers are f32.
        seed: of the values.

    Raises:
        CapacityError: the disk is full.
        ValueError: a row of a matrix is not a whole number of blocks.
    """
    tensors = list(list_tensors(config, form))
    source = np.random.SFC64(seed)
    with replacing(path) as file:
        write_header(file, make_metadata(config, form), [tensor.info for tensor in tensors])
        for tensor in tensors:
            write_tensor(file, tensor.info, draw_pieces(source, tensor))


def make_metadata(config: DecoderConfig, form: Form) -> dict[str, Value]:
    """Describe the decoder in llama.cpp's words; there is no tokenizer, only a vocabulary size."""
    fields: dict[str, Value] = {
        "context_length": config.max_positions,
        "vocab_size": config.vocab_size,
        "block_count": config.num_layers,
        "leading_dense_block_count": config.num_dense_layers,
        "embedding_length": config.width,
        "feed_forward_length": config.dense_width,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": 1,  # the latent is the one key of all heads
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "attention.kv_lora_rank": config.latent_rank,
        "attention.key_length": config.latent_width,
        "attention.value_length": config.latent_rank,
        "attention.key_length_mla": config.query_size,
        "attention.value_length_mla": config.value_size,
        "rope.dimension_count": config.rope_size,
        "rope.freq_base": config.rope_theta,
        "expert_count": config.num_experts,
        "expert_used_count": config.experts_per_token,
        "expert_shared_count": config.num_shared_experts,
        "expert_feed_forward_length": config.expert_width,
        "expert_gating_func": SIGMOID,
        "expert_weights_norm": config.normalize_scores,
        "expert_weights_scale": config.routed_scale,
    }
    return {
        "general.architecture": ARCHITECTURE,
        "general.name": "Kimi-VL-A3B, random values",
        "general.file_type": FILE_TYPES[form],
        **{f"{ARCHITECTURE}.{key}": value for key, value in fields.items()},
        "tokenizer.ggml.model": "none",
    }


def list_tensors(config: DecoderConfig, form: Form) -> Iterator[RandomTensor]:
    """Name every tensor of the decoder, in the order of the file."""
    embedding = (config.vocab_size, config.width)
    yield _matrix("token_embd", embedding, form, fan_in=1)
    yield _ones("output_norm", config.width)
    yield _matrix("output", embedding, form)
    for layer in range(config.num_layers):
        prefix = f"blk.{layer}"
        yield from _attention(prefix, config, form)
        yield _ones(f"{prefix}.ffn_norm", config.width)
        if config.is_dense(layer):
            yield from _mlp(prefix, "", (), config.width, config.dense_width, form)
        else:
            yield from _experts(prefix, config, form)


def _attention(prefix: str, config: DecoderConfig, form: Form) -> Iterator[RandomTensor]:
    heads, rank, width = config.num_heads, config.latent_rank, config.width
    yield _ones(f"{prefix}.attn_norm", width)
    yield _ones(f"{prefix}.attn_kv_a_norm", rank)
    yield _matrix(f"{prefix}.attn_q", (heads * config.query_size, width), form)
    yield _matrix(f"{prefix}.attn_kv_a_mqa", (config.latent_width, width), form)
    # Transposed: it is applied to the queries, though its values are scaled as keys are made.
    yield _matrix(f"{prefix}.attn_k_b", (heads, rank, config.nope_size), form, fan_in=rank)
    yield _matrix(f"{prefix}.attn_v_b", (heads, config.value_size, rank), form)
    yield _matrix(f"{prefix}.attn_output", (width, heads * config.value_size), form)


def _experts(prefix: str, config: DecoderConfig, form: Form) -> Iterator[RandomTensor]:
    width, num = config.width, config.num_experts
    router = TensorInfo(name=f"{prefix}.ffn_gate_inp.weight", shape=(num, width), form="f32")
    bias = TensorInfo(name=f"{prefix}.exp_probs_b.bias", shape=(num,), form="f32")
    yield RandomTensor(info=router, deviation=width**-0.5)
    yield RandomTensor(info=bias, deviation=0.01)
    yield from _mlp(prefix, "_exps", (num,), width, config.expert_width, form)
    yield from _mlp(prefix, "_shexp", (), width, config.shared_width, form)


def _mlp(
    prefix: str, suffix: str, experts: tuple[int, ...], width: int, inner: int, form: Form
) -> Iterator[RandomTensor]:
    yield _matrix(f"{prefix}.ffn_gate{suffix}", (*experts, inner, width), form)
    yield _matrix(f"{prefix}.ffn_up{suffix}", (*experts, inner, width), form)
    yield _matrix(f"{prefix}.ffn_down{suffix}", (*experts, width, inner), form)


def _matrix(
    name: str, shape: tuple[int, ...], form: Form, *, fan_in: int | None = None
) -> RandomTensor:
    """Scale values so that a product is as large as what goes in; `fan_in` is the row's size."""
    info = TensorInfo(name=f"{name}.weight", shape=shape, form=form)
    return RandomTensor(info=info, deviation=(fan_in or shape[-1]) ** -0.5)


def _ones(name: str, size: int) -> RandomTensor:
    info = TensorInfo(name=f"{name}.weight", shape=(size,), form="f32")
    return RandomTensor(info=info, deviation=0.0, mean=1.0)


def draw_pieces(source: np.random.SFC64, tensor: RandomTensor) -> Iterator[bytes]:
    """Draw a tensor's bytes, some MB at a time."""
    draw = _DRAWN[tensor.info.form]
    for start in range(0, tensor.info.num_blocks, PIECE_BLOCKS):
        num_blocks = min(PIECE_BLOCKS, tensor.info.num_blocks - start)
        yield draw(source, tensor, num_blocks).tobytes()


def _draw_f32(source: np.random.SFC64, tensor: RandomTensor, num: int) -> NDArray[Any]:
    values = np.random.Generator(source).standard_normal(num, dtype=np.float32)
    return np.float32(tensor.mean) + np.float32(tensor.deviation) * values


def _draw_q4_0(source: np.random.SFC64, tensor: RandomTensor, num: int) -> NDArray[Any]:
    return _draw_blocks(source, tensor, num, "u1")


def _draw_q8_0(source: np.random.SFC64, tensor: RandomTensor, num: int) -> NDArray[Any]:
    blocks = _draw_blocks(source, tensor, num, "i1")
    np.maximum(blocks["codes"], -127, out=blocks["codes"])  # no quantiser writes -128
    return blocks


def _draw_blocks(
    source: np.random.SFC64, tensor: RandomTensor, num: int, code: str
) -> NDArray[Any]:
    """Fill blocks with random bits and give every block the tensor's scale, signed at random.

    The codes' mean is half a step off zero. With the signs this averages out along a row; without
    them all rows would share one direction, which would grow from layer to layer.
    """
    form = tensor.info.form
    size = BLOCKS[form].size_bytes
    bits = source.random_raw(-(-num * size // 8)).view("u1")[: num * size]
    blocks: NDArray[Any] = bits.view([("scale", "<u2"), ("codes", code, size - 2)])
    scale = np.float16(tensor.deviation / CODE_DEVIATIONS[form]).view(np.uint16)
    blocks["scale"] &= SIGN_BIT
    blocks["scale"] |= scale
    return blocks


_DRAWN: dict[Form, Callable[[np.random.SFC64, RandomTensor, int], NDArray[Any]]] = {
    "f32": _draw_f32,
    "q4_0": _draw_q4_0,
    "q8_0": _draw_q8_0,
}


def default_path(form: Form) -> Path:
    """Tell where the released sizes are kept."""
    return Path("out/peers") / f"kimi-vl-{form}.gguf"


def write_released_sizes(form: Form, path: Path) -> Path:
    """Write the decoder in the released sizes, unless the file is there already."""
    if not path.exists():
        write_random_model(path, KimiVLConfig.from_fields(FULL_CONFIG).decoder, form)
    return path


if __name__ == "__main__":
    forms: dict[str, Form] = {"q4_0": "q4_0", "q8_0": "q8_0"}
    if len(sys.argv) not in (2, 3) or sys.argv[1] not in forms:
        sys.exit(__doc__)
    chosen = forms[sys.argv[1]]
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else default_path(chosen)
    sys.stdout.write(f"{write_released_sizes(chosen, target)}\n")
