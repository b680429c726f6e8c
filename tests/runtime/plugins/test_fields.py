"""A launch written into two byte strings and read again."""

import base64
import json

import pytest

from runtime.errors import ArtifactError
from runtime.plugins.fields import Fields, fields_from_launch, launch_from_fields

from .fake_cuda import make_launch


def test_a_launch_comes_back_even_with_the_zero_that_the_parser_adds() -> None:
    launch = make_launch((80, 89, 120))
    fields = fields_from_launch(launch)
    assert launch_from_fields(fields) == launch
    assert launch_from_fields(Fields(fields.launch + b"\0", fields.code + b"\0")) == launch
    assert fields == fields_from_launch(make_launch((80, 89, 120)))


def test_missing_code_is_found() -> None:
    fields = fields_from_launch(make_launch())
    code = base64.b64decode(fields.code)
    short = base64.b64encode(code[:-1])
    with pytest.raises(ArtifactError, match=f"{len(code) - 1} bytes, expected {len(code)}; build"):
        launch_from_fields(fields._replace(code=short))


@pytest.mark.parametrize("code", [b"abc", b"\xff\xfe\xfd\xfc", b"ab=c"])
def test_code_that_is_no_text_is_refused(code: bytes) -> None:
    fields = fields_from_launch(make_launch())
    with pytest.raises(ArtifactError, match="field code: not base64"):
        launch_from_fields(fields._replace(code=code))


def test_another_format_is_refused() -> None:
    fields = fields_from_launch(make_launch())
    values = json.loads(fields.launch)
    values["format"] = 2
    with pytest.raises(ArtifactError, match="format 2, expected 1; build"):
        launch_from_fields(fields._replace(launch=json.dumps(values).encode()))
