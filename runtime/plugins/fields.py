"""A `Launch` as two texts: attributes of an ONNX node, then fields of a serialised plugin.

`launch` is JSON, `code` the cubins one after the other in base64, since ONNX's strings are UTF-8.
TensorRT's ONNX parser adds a zero byte to every string attribute.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

from ..errors import ArtifactError
from .launch import Cubin, Launch, Output, Size, Variant

LAUNCH_FIELD = "launch"
CODE_FIELD = "code"

_FORMAT = 1


class Fields(NamedTuple):
    """What is stored."""

    launch: bytes
    code: bytes


def fields_from_launch(launch: Launch) -> Fields:
    """Write a launch down; equal launches give equal bytes."""
    described = asdict(launch)
    code = bytearray()
    for variant in described["variants"]:
        for cubin in variant["cubins"]:
            code += cubin["code"]
            cubin["code"] = len(cubin["code"])
    header = json.dumps({"format": _FORMAT, **described}, separators=(",", ":"))
    return Fields(header.encode(), base64.b64encode(code))


def launch_from_fields(fields: Fields) -> Launch:
    """Read a launch.

    Raises:
        ArtifactError: another version wrote it, or bytes are missing.
    """
    described = json.loads(fields.launch.rstrip(b"\0"))
    found = described.pop("format", None)
    if found != _FORMAT:
        raise ArtifactError(
            f"plugin field {LAUNCH_FIELD}: format {found}, expected {_FORMAT}; "
            "build the engine with this version"
        )
    sizes = [cubin["code"] for one in described["variants"] for cubin in one["cubins"]]
    code = _decoded(fields.code)
    if len(code) != sum(sizes):
        raise ArtifactError(
            f"plugin field {CODE_FIELD}: {len(code)} bytes, expected {sum(sizes)}; "
            "build the engine again"
        )
    variants, begin = [], 0
    for one in described.pop("variants"):
        cubins = []
        for cubin in one.pop("cubins"):
            end = begin + cubin.pop("code")
            cubins.append(Cubin(**cubin, code=code[begin:end]))
            begin = end
        variants.append(Variant(**one, cubins=tuple(cubins)))
    outputs = tuple(_output(one) for one in described.pop("outputs"))
    return Launch(
        op=described.pop("op"),
        inputs=tuple(described.pop("inputs")),
        arguments=tuple(described.pop("arguments")),
        outputs=outputs,
        variants=tuple(variants),
        **described,
    )


def _decoded(text: bytes) -> bytes:
    try:
        return base64.b64decode(text.rstrip(b"\0"), validate=True)
    except binascii.Error as error:
        raise ArtifactError(
            f"plugin field {CODE_FIELD}: not base64 ({error}); build the engine again"
        ) from error


def _output(values: Mapping[str, Any]) -> Output:
    return Output(dtype=values["dtype"], shape=tuple(Size(*size) for size in values["shape"]))
