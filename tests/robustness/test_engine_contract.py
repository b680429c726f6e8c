"""Graphs that the manifest vouches for and the engine cannot use are refused when it is opened."""

from pathlib import Path

import pytest

from runtime import Session
from runtime.artifact.fields import MAX_BYTES
from runtime.errors import ArtifactError, CapacityError

from .conftest import WarmTool, assert_named_error
from .tampering import put_in_place, read_fields, write_fields

SWAPS = {
    ("head", "projector"): "head gives features, expected logits; head takes merged, expected",
    ("projector", "layer_00"): "projector takes hidden, cache, lengths, expected merged",
    ("vision", "head"): "vision takes hidden, rows, expected patches, row_weights, column_weights",
    ("layer_01", "vision"): "layer_01 takes patches, row_weights, column_weights, expected hidden",
}


@pytest.mark.parametrize(("graph", "other"), SWAPS)
def test_another_graph_in_the_place_of_one_is_refused_at_open(
    graph: str, other: str, tool: WarmTool, copied: Path
) -> None:
    content = (copied / f"graphs/{other}.cpu.onnx").read_bytes()
    put_in_place(copied, f"graphs/{graph}.cpu.onnx", content)
    with pytest.raises(ArtifactError) as caught:
        Session.open(copied)
    assert SWAPS[graph, other] in str(caught.value)
    assert_named_error(tool("run", copied, "hi"), str(copied), "not the graphs of this model")


def test_a_cache_of_another_width_than_the_graphs_write_is_refused_at_open(copied: Path) -> None:
    fields = read_fields(copied)
    fields["targets"]["cpu"]["cache"]["tensors"]["cache"]["width"] += 1
    write_fields(copied, fields)
    with pytest.raises(ArtifactError, match="layer_00 takes cache as tensor"):
        Session.open(copied)


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        ("bfloat16", "a cache of bfloat16; .* runs float32 and int8"),
        ("int8", "layer_00 takes cache"),
    ],
)
def test_a_cache_of_another_type_is_refused_at_open(dtype: str, message: str, copied: Path) -> None:
    fields = read_fields(copied)
    fields["targets"]["cpu"]["cache"]["tensors"]["cache"]["dtype"] = dtype
    write_fields(copied, fields)
    with pytest.raises(ArtifactError, match=message):
        Session.open(copied)


def test_an_embedding_table_of_another_form_is_refused_at_open(copied: Path) -> None:
    fields = read_fields(copied)
    fields["embedding"]["shape"].reverse()
    write_fields(copied, fields)
    with pytest.raises(ArtifactError, match=r"embedding is \(64, 756\), expected \(756, 64\)"):
        Session.open(copied)


def test_a_cache_larger_than_the_memory_is_told_with_its_size(copied: Path) -> None:
    fields = read_fields(copied)
    target = fields["targets"]["cpu"]
    limits = target["limits"]
    limits["max_tokens"] = (1 << 31) - 1
    width = target["cache"]["tensors"]["cache"]["width"]
    limits["max_slots"] = MAX_BYTES // (4 * width * limits["max_tokens"])
    write_fields(copied, fields)
    with pytest.raises(CapacityError, match=r"tokens needs \d+\.\d GB, .* --max-batch-size"):
        Session.open(copied)
