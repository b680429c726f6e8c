"""A manifest that says nonsense: one line that names the place, never a traceback."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime import KimiVLError, Session
from runtime.artifact.folder import Artifact
from runtime.artifact.manifest import FILE_NAME
from runtime.errors import ArtifactError

from .conftest import WarmTool, assert_named_error
from .tampering import read_fields, write_fields

TOO_DEEP = b"[" * 100_000
NOT_MANIFESTS = {
    "nothing": (b"", "not readable as JSON"),
    "no JSON": (b"weights: none", "not readable as JSON"),
    "half of it": (b'{"format": 3, "files": {', "not readable as JSON"),
    "no text": (b"\xff\xfe\x00", "not readable as JSON"),
    "endless brackets": (TOO_DEEP, "not readable as JSON"),
    "a number of many digits": (b'{"format": ' + b"9" * 5000 + b"}", "not readable as JSON"),
    "a list": (b"[1]", "format 'list', expected 3"),
    "another format": (b'{"format": 1}', "format 1, expected 3"),
    "a format that only looks like one": (b'{"format": true}', "format True, expected 3"),
    "no format": (b"{}", "format None, expected 3"),
    "a format alone": (b'{"format": 3}', "malformed manifest: `source` is missing"),
}


@pytest.mark.parametrize("case", NOT_MANIFESTS)
def test_what_is_no_manifest_is_refused_in_one_line(case: str, copied: Path) -> None:
    content, message = NOT_MANIFESTS[case]
    (copied / FILE_NAME).write_bytes(content)
    with pytest.raises(ArtifactError) as caught:
        Artifact.open(copied)
    text = str(caught.value)
    assert text.startswith(f"{copied / FILE_NAME}: ")
    assert message in text
    assert "\n" not in text


def test_a_folder_of_someone_else_is_refused_by_every_command(
    tool: WarmTool, tmp_path: Path
) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    for words in (("run", tmp_path, "hi"), ("build", tmp_path), ("verify", tmp_path)):
        assert_named_error(tool(*words), f"{tmp_path}: no manifest.json", "not a finished artifact")
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_manifest_that_is_a_folder_is_refused(tool: WarmTool, copied: Path) -> None:
    (copied / FILE_NAME).unlink()
    (copied / FILE_NAME).mkdir()
    assert_named_error(tool("run", copied, "hi"), str(copied / FILE_NAME))


OUTSIDE = ["../secret.onnx", "graphs/../../secret.onnx", "/etc/hostname", "", ".", "..", "a\0b"]


@pytest.mark.parametrize("name", [*OUTSIDE, "\ud800", "x" * 5000, "nowhere/" * 2000])
def test_a_path_that_leaves_the_folder_or_cannot_be_is_refused(
    name: str, tool: WarmTool, copied: Path
) -> None:
    (copied.parent / "secret.onnx").write_bytes(b"secret")
    fields = read_fields(copied)
    target = fields["targets"]["cpu"]["graphs"]
    fields["files"][name] = fields["files"].pop(target["head"])
    target["head"] = name
    write_fields(copied, fields)
    with pytest.raises(ArtifactError) as caught:
        Artifact.open(copied)
    if name in OUTSIDE:
        assert f"{copied}: the path {name!r} " in str(caught.value)
    assert_named_error(tool("run", copied, "hi"))
    assert_named_error(tool("verify", copied))


@pytest.mark.parametrize(
    "place", [("graphs", "head"), ("targets", "cpu", "graphs", "head"), ("embedding", "path")]
)
def test_a_file_that_is_used_but_not_listed_is_refused(
    place: tuple[str, ...], copied: Path
) -> None:
    fields = read_fields(copied)
    _holder(fields, place)[place[-1]] = "graphs/unlisted.onnx"
    write_fields(copied, fields)
    (copied / "graphs" / "unlisted.onnx").write_bytes(b"unlisted")
    with pytest.raises(ArtifactError, match=r"'graphs/unlisted\.onnx' is used but not in `files`"):
        Artifact.open(copied)


CACHE = ("targets", "cpu", "cache", "tensors")
WRONG_VALUES: dict[tuple[str, ...], tuple[Any, str]] = {
    ("targets", "cpu", "limits", "max_tokens"): ("512", "must be int, found str"),
    ("targets", "cpu", "limits", "max_slots"): (-1, "must be from 1 to 2147483647, is -1"),
    ("targets", "cpu", "limits", "max_patches"): (True, "must be int, found bool"),
    ("targets", "cpu", "limits", "prefill_chunk"): (513, "larger than `max_tokens`"),
    ("targets", "cpu", "limits", "max_input_tokens"): (513, "larger than `max_tokens`"),
    (*CACHE, "cache", "width"): (1 << 31, "must be from 1 to 2147483647"),
    (*CACHE, "cache", "dtype"): ("float8", "`targets.cpu.cache.tensors.cache` is of type 'float8'"),
    CACHE: ({}, "`targets.cpu.cache.tensors.cache` is missing"),
    ("embedding", "scales"): (3, "`embedding.scales` must be str, found int"),
    ("targets", "cpu", "limits"): ([], "`targets.cpu.limits` must be dict, found list"),
    ("targets",): ([], "`targets` must be dict, found list"),
    ("files",): ({"a": 3}, "`files.a` must be dict, found int"),
    ("layers",): ([0, "1"], "`layers.1` must be int, found str"),
    ("taps",): (0, "`taps` must be bool, found int"),
    ("graphs", "head"): (["a"], "`graphs.head` must be str, found list"),
    ("parity", "cpu", "head"): ("small", "`parity.cpu.head` must be float, found str"),
    ("embedding", "shape"): ([1, 2, 3], "a table of 3 axes of 'float32'"),
    ("embedding", "dtype"): ("float8", "a table of 2 axes of 'float8'"),
}


@pytest.mark.parametrize("place", WRONG_VALUES, ids=".".join)
def test_a_wrong_value_is_named_with_its_place(place: tuple[str, ...], copied: Path) -> None:
    value, message = WRONG_VALUES[place]
    fields = read_fields(copied)
    _holder(fields, place)[place[-1]] = value
    write_fields(copied, fields)
    with pytest.raises(ArtifactError) as caught:
        Artifact.open(copied)
    assert f"{FILE_NAME}: malformed manifest: `{place[0]}" in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "place",
    [
        (),
        ("embedding",),
        ("files", "graphs/head.onnx"),
        ("targets", "cpu"),
        ("targets", "cpu", "limits"),
        ("targets", "cpu", "cache"),
        (*CACHE, "cache"),
    ],
    ids=".".join,
)
def test_an_unknown_field_is_refused_with_its_place(place: tuple[str, ...], copied: Path) -> None:
    fields = read_fields(copied)
    _holder(fields, (*place, "extra"))["extra"] = 1
    write_fields(copied, fields)
    where = ".".join((*place, "extra"))
    with pytest.raises(ArtifactError, match=f"malformed manifest: `{where}` is not known"):
        Artifact.open(copied)


def test_all_unknown_fields_of_a_place_are_named(copied: Path) -> None:
    fields = read_fields(copied)
    fields |= {"zebra": 1, "ape": 2}
    write_fields(copied, fields)
    with pytest.raises(ArtifactError, match="malformed manifest: `ape`, `zebra` are not known"):
        Artifact.open(copied)


def test_a_cache_that_no_machine_can_hold_is_refused(copied: Path) -> None:
    fields = read_fields(copied)
    limits = fields["targets"]["cpu"]["limits"]
    limits["max_tokens"] = limits["max_slots"] = (1 << 31) - 1
    write_fields(copied, fields)
    with pytest.raises(ArtifactError, match="a cache that no machine can hold"):
        Artifact.open(copied)


@pytest.mark.parametrize("missing", ["vision", "layer_01", "head"])
def test_a_target_without_one_of_its_graphs_is_refused(missing: str, copied: Path) -> None:
    fields = read_fields(copied)
    del fields["targets"]["cpu"]["graphs"][missing]
    write_fields(copied, fields)
    with pytest.raises(ArtifactError, match=f"graphs of target cpu are .* need .*{missing}"):
        Artifact.open(copied)


@pytest.mark.parametrize("change", [-1, 1])
def test_an_embedding_table_of_another_size_than_its_file_is_refused(
    change: int, copied: Path
) -> None:
    fields = read_fields(copied)
    fields["embedding"]["shape"][0] += change
    write_fields(copied, fields)
    with pytest.raises(ArtifactError, match=r"an embedding table of 75[57] x 64 float32 has"):
        Artifact.open(copied)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scales": "graphs/weights/head.bin"}, "an embedding table of float32 with scales"),
        ({"dtype": "int8", "shape": [756, 256]}, "an embedding table of int8 without scales"),
        (
            {"dtype": "int8", "shape": [756, 256], "scales": "graphs/weights/head.bin"},
            r"the scales of 756 rows have 3024 bytes, their file has \d+",
        ),
        ({"scales": "graphs/weights/none.bin"}, "'graphs/weights/none.bin' is used but not in"),
    ],
)
def test_scales_that_do_not_belong_to_the_embedding_table_are_refused(
    changes: dict[str, Any], message: str, copied: Path
) -> None:
    fields = read_fields(copied)
    fields["embedding"].update(changes)
    write_fields(copied, fields)
    with pytest.raises(ArtifactError, match=message):
        Artifact.open(copied)


JUNK: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1 << 31,
    1 << 70,
    1e308,
    float("nan"),
    "",
    "../x",
    "a\0",
    "\ud800",
    [],
    {},
    [[]],
    {"": {}},
)
READ_BY_SESSIONS = ("targets", "embedding", "files")


def test_no_junk_anywhere_in_the_manifest_causes_anything_but_a_named_error(
    copied: Path,
) -> None:
    whole = read_fields(copied)
    refused = opened = 0
    lines: set[int] = set()
    for place in _places(whole):
        for junk in (*JUNK, ...):
            fields = copy.deepcopy(whole)
            holder = _holder(fields, place)
            if junk is ...:  # nothing at all
                del holder[place[-1]]
            else:
                holder[place[-1]] = junk
            write_fields(copied, fields)
            try:
                Artifact.open(copied)
                if place[0] in READ_BY_SESSIONS:
                    Session.open(copied, num_threads=1)
                opened += 1
            except KimiVLError as error:
                lines.add(str(error).count("\n"))
                refused += 1
            except Exception as error:
                raise AssertionError(f"{'.'.join(map(str, place))} = {junk!r}") from error
    assert refused > 2 * opened > 0
    assert lines == {0}


def _holder(fields: Any, place: tuple[Any, ...]) -> Any:  # noqa: ANN401  JSON
    for step in place[:-1]:
        fields = fields[step]
    return fields


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:  # noqa: ANN401
    """Yield the path of every field, but of one file, one graph and one pass for all of a kind."""
    if place:
        yield place
    if isinstance(value, dict):
        names = list(value)
        alike = place in (("files",), ("graphs",), ("versions",), ("source", "text_files"))
        for name in names[:1] if alike else names:
            yield from _places(value[name], (*place, name))
    elif isinstance(value, list) and value:
        yield from _places(value[0], (*place, 0))


def test_the_places_that_are_tried_are_all_kinds_of_fields(artifact: Path) -> None:
    places = {".".join(map(str, place)) for place in _places(read_fields(artifact))}
    assert {"layers.0", "embedding.shape.0", "targets.cpu.limits.max_slots"} <= places
    assert {"targets.cpu.graphs.head", "parity.cpu.head", "recipe"} <= places
    assert json.dumps(read_fields(artifact))
