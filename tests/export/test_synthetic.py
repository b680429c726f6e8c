import errno
import json
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from export.checkpoint import writer
from export.checkpoint.expected import expected_tensors
from export.checkpoint.reader import Checkpoint
from export.synthetic import folder as synth
from export.synthetic.configs import TINY_CONFIG
from export.synthetic.folder import write_synthetic
from export.synthetic.tensors import SyntheticTensors
from runtime.config import KimiVLConfig
from runtime.errors import CapacityError, CheckpointError
from tests.export.checkpoint_files import tiny_config

ROUTER = "language_model.model.layers.1.mlp.gate.weight"
BIAS = "language_model.model.layers.1.mlp.gate.e_score_correction_bias"
EXPERT = "language_model.model.layers.2.mlp.experts.{}.up_proj.weight"


@pytest.fixture
def tensors() -> SyntheticTensors:
    return SyntheticTensors(tiny_config(), 5, "bfloat16")


def test_the_same_seed_and_name_give_the_same_values(tensors: SyntheticTensors) -> None:
    again = SyntheticTensors(tiny_config(), 5, "bfloat16")
    again.tensor(ROUTER)  # the order of reading does not matter
    name = EXPERT.format(3)
    assert torch.equal(tensors.tensor(name), again.tensor(name))
    assert torch.equal(tensors.tensor(name), tensors.tensor(name))


def test_another_name_or_seed_gives_other_values(tensors: SyntheticTensors) -> None:
    first = tensors.tensor(EXPERT.format(3)).float()
    for other in (
        tensors.tensor(EXPERT.format(4)),
        SyntheticTensors(tiny_config(), 6, "bfloat16").tensor(EXPERT.format(3)),
    ):
        # 40 x 64 independent pairs of bfloat16: hardly any are equal by chance.
        assert (first == other.float()).float().mean() < 0.05


def test_the_dtype_only_rounds_the_values(tensors: SyntheticTensors) -> None:
    exact = SyntheticTensors(tiny_config(), 5, "float32").tensor(ROUTER)
    assert exact.dtype == torch.float32
    assert torch.equal(exact.to(torch.bfloat16), tensors.tensor(ROUTER))


def test_the_correction_bias_stays_in_float32(tensors: SyntheticTensors) -> None:
    assert tensors.tensor(BIAS).dtype == tensors.dtype(BIAS) == torch.float32
    assert tensors.tensor(ROUTER).dtype == tensors.dtype(ROUTER) == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("language_model.model.embed_tokens.weight", 0.0, 1.0),
        ("vision_tower.patch_embed.pos_emb.weight", 0.0, 1.0),
        ("vision_tower.patch_embed.proj.weight", 0.0, 588**-0.5),
        ("language_model.lm_head.weight", 0.0, 1.25 / 8),
        ("language_model.model.layers.0.mlp.down_proj.weight", 0.0, 1.25 * 96**-0.5),
        (ROUTER, 0.0, 2 / 8),
        ("vision_tower.encoder.blocks.0.wqkv.bias", 0.0, 0.2),
        ("multi_modal_projector.pre_norm.weight", 1.0, 0.3),
        ("language_model.model.norm.weight", 1.0, 0.3),
    ],
)
def test_values_are_spread_widely(
    tensors: SyntheticTensors, name: str, mean: float, std: float
) -> None:
    values = tensors.tensor(name).float()
    error = std * 5 / values.numel() ** 0.5  # five standard errors
    assert abs(values.mean().item() - mean) < error
    assert abs(values.std().item() - std) < error


def test_an_unknown_name_is_a_key_error(tensors: SyntheticTensors) -> None:
    for read in (tensors.shape, tensors.dtype, tensors.tensor):
        with pytest.raises(KeyError, match="nonsense"):
            read("nonsense")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_real_shards_hold_what_the_lazy_folder_computes(tmp_path: Path, dtype: str) -> None:
    lazy = Checkpoint.open(
        write_synthetic(tmp_path / "lazy", shape="tiny", seed=9, dtype=dtype, lazy=True)
    )
    real = Checkpoint.open(
        write_synthetic(tmp_path / "real", shape="tiny", seed=9, dtype=dtype, lazy=False)
    )
    assert lazy.names == real.names
    assert lazy.config == real.config
    for name in lazy.names:
        assert lazy.shape(name) == real.shape(name)
        assert lazy.dtype(name) == real.dtype(name)
        assert torch.equal(lazy.tensor(name), real.tensor(name)), name


def test_shards_have_the_layout_of_the_release(tmp_path: Path) -> None:
    folder = write_synthetic(tmp_path / "real", shape="tiny", lazy=False)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(shards) >= 3
    assert shards == [
        f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        for number in range(1, len(shards) + 1)
    ]
    stored = {shard: load_file(folder / shard) for shard in shards}
    assert index["weight_map"] == {name: shard for shard in shards for name in stored[shard]}
    sizes = [tensor.nbytes for shard in shards for tensor in stored[shard].values()]
    assert index["metadata"]["total_size"] == sum(sizes)
    vision = {shard for name, shard in index["weight_map"].items() if "language" not in name}
    assert vision == {shards[0]}
    assert not (folder / "synth.json").exists()


def test_shards_are_filled_up_to_their_limit_and_no_further() -> None:
    assert writer._split({"a": 2, "b": 2, "c": 1, "d": 3, "e": 4}) == [
        ["a", "b"],
        ["c", "d"],
        ["e"],
    ]


def test_wide_tensors_are_aligned_behind_narrow_ones_of_odd_size(tmp_path: Path) -> None:
    class Values:
        def shape(self, name: str) -> tuple[int, ...]:
            return (3,)

        def dtype(self, name: str) -> torch.dtype:
            return torch.float32 if name == "wide" else torch.bfloat16

        def tensor(self, name: str) -> torch.Tensor:
            return torch.tensor([1, 2, len(name)], dtype=self.dtype(name))

    writer._write_shard(tmp_path / "x.safetensors", Values(), ["odd", "wide"])
    raw = (tmp_path / "x.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    begin = json.loads(raw[8 : 8 + length])["wide"]["data_offsets"][0]
    assert (8 + length + begin) % 4 == 0
    assert load_file(tmp_path / "x.safetensors")["odd"].tolist() == [1, 2, 3]


def test_a_lazy_folder_has_no_weights_and_the_full_shape_is_lazy(tmp_path: Path) -> None:
    folder = write_synthetic(tmp_path / "full", shape="full", seed=1)
    assert not list(folder.glob("*.safetensors*"))
    checkpoint = Checkpoint.open(folder)
    assert sum(prod(checkpoint.shape(name)) for name in checkpoint.names) == 16_407_656_048
    assert checkpoint.tensor("vision_tower.encoder.blocks.26.wo.weight").shape == (1152, 1152)
    assert "tiktoken.model" in {path.name for path in checkpoint.text_files()}


def test_the_identity_of_a_lazy_folder_is_config_seed_and_dtype(tmp_path: Path) -> None:
    def identity(seed: int, dtype: str) -> dict[str, Any]:
        folder = tmp_path / f"{seed}-{dtype}-{len(list(tmp_path.iterdir()))}"
        write_synthetic(folder, shape="tiny", seed=seed, dtype=dtype, lazy=True)
        return Checkpoint.open(folder).identity()

    base = identity(1, "bfloat16")
    assert (base["kind"], base["seed"], base["dtype"]) == ("synthetic", 1, "bfloat16")
    assert len(base["config_sha256"]) == 64
    assert base == identity(1, "bfloat16")
    assert base != identity(2, "bfloat16")
    assert base != identity(1, "float32")


def test_a_config_of_ones_own_is_copied_and_kept(tmp_path: Path) -> None:
    text = {**TINY_CONFIG["text_config"], "num_hidden_layers": 1}
    own = tmp_path / "own.json"
    own.write_text(json.dumps({**TINY_CONFIG, "text_config": text}))
    folder = write_synthetic(tmp_path / "out", shape=own)
    assert (folder / "config.json").read_bytes() == own.read_bytes()
    assert (folder / "synth.json").exists()
    assert Checkpoint.open(folder).config.decoder.num_layers == 1


def test_a_config_whose_placeholder_does_not_fit_the_tokenizer_is_refused(tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    own.write_text(json.dumps({**TINY_CONFIG, "media_placeholder_token_id": 7}))
    with pytest.raises(CheckpointError, match=r"media_placeholder_token_id is 7, but .* at 521"):
        write_synthetic(tmp_path / "out", shape=own)


def test_the_tiny_shape_tells_sizes_apart() -> None:
    config = tiny_config()
    decoder = config.decoder
    sizes = [decoder.width, decoder.dense_width, decoder.expert_width, decoder.shared_width]
    sizes += [decoder.latent_rank, decoder.latent_width, decoder.vocab_size, decoder.num_experts]
    sizes += [decoder.nope_size, decoder.rope_size, decoder.value_size, decoder.num_heads]
    assert len(set(sizes)) == len(sizes)
    assert config.pad_token_id == decoder.vocab_size - 1


@pytest.mark.parametrize(
    ("shape", "dtype", "words"),
    [
        ("huge", "bfloat16", "shape 'huge' is none of tiny, full, nor a config.json"),
        ("tiny", "int8", "dtype 'int8' is not one of bfloat16, float16"),
    ],
)
def test_unknown_options_are_refused(tmp_path: Path, shape: str, dtype: str, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        write_synthetic(tmp_path / "out", shape=shape, dtype=dtype)
    assert not list(tmp_path.iterdir())


def test_a_target_that_holds_something_is_refused_and_kept(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "notes").write_text("mine")
    with pytest.raises(CheckpointError, match="out: not empty; choose another folder"):
        write_synthetic(target, shape="tiny")
    assert [path.read_text() for path in target.iterdir()] == ["mine"]
    with pytest.raises(CheckpointError, match="notes: exists and is not a folder"):
        write_synthetic(target / "notes", shape="tiny")


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert Checkpoint.open(write_synthetic(tmp_path / "out", shape="tiny")).names


@pytest.mark.parametrize(
    ("code", "error"), [(errno.ENOSPC, CapacityError), (errno.EACCES, CheckpointError)]
)
def test_a_failure_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, error: type[Exception]
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, "a reason")

    monkeypatch.setattr(synth, "write_shards", fail)
    with pytest.raises(error, match=r"out: cannot be written: .*a reason"):
        write_synthetic(tmp_path / "out", shape="tiny", lazy=False)
    assert not list(tmp_path.iterdir())


def test_shards_that_do_not_fit_the_disk_are_refused_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 30_000_000_000

    monkeypatch.setattr("export.synthetic.folder.shutil.disk_usage", lambda _: Usage)
    with pytest.raises(CapacityError, match=r"need 32\.8 GB, 30\.0 GB are free; write a lazy"):
        write_synthetic(tmp_path / "a" / "out", shape="full", lazy=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x", "not usable: Expecting value"),
        ("[1]", "not usable: expected a JSON object, found list"),
        ('{"seed": 1, "dtype": "int8"}', "dtype: expected one of bfloat16, .* found 'int8'"),
        ('{"seed": true, "dtype": "bfloat16"}', "seed: expected an integer, found True"),
        ('{"dtype": "bfloat16"}', "seed: expected an integer, found None"),
        ('{"seed": 1, "dtype": "bfloat16", "std": 1}', "std: unknown field"),
    ],
)
def test_a_synth_file_that_says_anything_else_is_refused(
    tmp_path: Path, text: str, words: str
) -> None:
    folder = write_synthetic(tmp_path / "out", shape="tiny", lazy=True)
    (folder / "synth.json").write_text(text)
    with pytest.raises(CheckpointError, match=f"synth.json: .*{words}"):
        Checkpoint.open(folder)


def test_a_seed_beside_real_tensors_is_ambiguous(tmp_path: Path) -> None:
    folder = write_synthetic(tmp_path / "out", shape="tiny", lazy=False)
    (folder / "synth.json").write_text('{"seed": 1, "dtype": "bfloat16"}')
    with pytest.raises(CheckpointError, match=r"holds both synth\.json and model\.safetensors"):
        Checkpoint.open(folder)


def test_tensors_of_the_tiny_shape_are_all_finite(tensors: SyntheticTensors) -> None:
    for name in expected_tensors(KimiVLConfig.from_fields(TINY_CONFIG)):
        assert torch.isfinite(tensors.tensor(name)).all(), name
