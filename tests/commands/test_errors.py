"""What a user can do wrong: one line on stderr, nothing on stdout, the right status."""

import json
import re
from pathlib import Path

import pytest

from commands import outcome, output
from runtime.artifact.manifest import FILE_NAME

from .conftest import Tool


@pytest.fixture
def words(checkpoint: Path, artifact: Path, tmp_path: Path) -> dict[str, str]:
    """Values for the placeholders in the calls below."""
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "letter.txt").write_text("mine")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    return {
        "checkpoint": str(checkpoint),
        "artifact": str(artifact),
        "foreign": str(foreign),
        "broken": str(tmp_path / "broken.png"),
        "new": str(tmp_path / "new"),
        "long": "word " * 3000,
    }


NAMED_ERRORS = {
    "export missing {new}": "no such folder; give a checkpoint folder or a hub id",
    "compile a/b/c {new}": "no such folder; give a checkpoint folder or a hub id",
    "export {checkpoint} {foreign}": "not empty and not an artifact (found 'letter.txt')",
    "export {checkpoint} {broken}": "not a folder",
    "export {checkpoint} {artifact} --recipe bf16": "another recipe",
    "export {checkpoint} {new} --recipe int5": "known ones are bf16, fp16, fp32",
    "export {checkpoint} {new} --recipe mine.toml": "recipe mine.toml: no such file",
    "export {checkpoint} {new} --recipe int4": "its scales come from samples",
    "compile {checkpoint} {new} --recipe int4": "give conversations with --data",
    "export {checkpoint} {new} --layers 9": "no decoder layers [9]; the model has 0 to 2",
    "export {checkpoint} {new} --layers 1,0": "expected rising numbers from 0 to 2",
    "export {checkpoint} {new} --revision main": "a folder has no revision",
    "compile {checkpoint} {new} --target gpu": "target 'gpu': known ones are cpu",
    "compile {checkpoint} {new} --max-kv-cache-capacity 9999": "made for at most 2048",
    "compile {checkpoint} {new} --max-input-len 2000 --max-kv-cache-capacity 9": "does not fit",
    "compile {checkpoint} {new} --max-batch-size 100000000": "and more than 1,000 GB are not",
    "compile {checkpoint} {new} --prefill-chunk 9999": "use --prefill-chunk 2048 or less",
    "compile {checkpoint} {new} --max-image-tokens 99999": "the checkpoint's rule gives at most",
    "build {artifact} --max-batch-size 100000000": "lower --max-batch-size",
    "plan {checkpoint} --max-batch-size 100000000": "lower --max-batch-size",
    "build missing": "missing: no such folder",
    "build {artifact} --target gpu": "known ones are cpu",
    "verify {foreign}": "not a finished artifact folder",
    "verify {artifact} --target gpu": "not built for target 'gpu' (built: cpu)",
    "run {artifact} hi --target rtx:sm99": "can be built are cpu, rtx:sm75, rtx:sm80, rtx:sm86",
    "run {artifact} hi --target rtx:sm89+sm120": "build {artifact} --target rtx:sm89+sm120`",
    "inspect missing": "missing: no manifest.json",
    "run missing hi": "missing: no such folder",
    "run {foreign} hi": "not a finished artifact folder",
    "run {artifact} hi --target gpu": "(built: cpu); there is no such target; those that can be",
    "run {artifact} hi --image missing.png": "missing.png: no such file",
    "run {artifact} hi --image {broken}": "broken",
    "run {artifact} hi --image {foreign}": "not a file",
    "run {artifact} hi --image https://a.org/x.png": "addresses are not fetched",
    "run {artifact} hi --threads 9999": "threads: found 9999, expected 1 to",
    "run {artifact} {long}": "images: the model takes at most 2048",
    "bench {artifact} -p 2049": "ask for less: the model takes at most 2048",
    "run {artifact} hi --top-p 3 --temperature -1": "2 problems: temperature",
    "run {artifact} hi --logprobs 21 --json": "from 0 to 20, found 21",
    "synth huge {new}": "shape 'huge' is none of tiny, full",
    "synth tiny {foreign}": "not empty",
    "chat missing": "missing: no such folder",
    "chat missing --min-p 2": "min_p: expected a number from 0 (all) to 1",
}

WRONG_CALLS = {
    "": "Missing command",
    "bake": "bake",
    "run {artifact}": "PROMPT",
    "run {artifact} hi --max-new-token 3": "--max-new-token",
    "run {artifact} hi --max-new-tokens many": "--max-new-tokens",
    "run {artifact} hi --max-new-tokens 0": "--max-new-tokens",
    "run {artifact} hi --release thinker": "thinking-2506",
    "run {artifact} hi --logprobs 3": "needs --json",
    "run {artifact} hi --threads 0": "--threads",
    "export {checkpoint} {new} --layers 0-2": "--layers",
    "build {artifact} --max-kv-cache-capacity 0": "--max-kv-cache-capacity",
    "synth tiny {new} --dtype int4": "'bfloat16', 'float16', 'float32'",
    "synth tiny {new} --seed -1": "--seed",
}


def fill(line: str, words: dict[str, str]) -> list[str]:
    return [word.format(**words) for word in line.split()]


@pytest.mark.parametrize("line", NAMED_ERRORS)
def test_a_named_error_is_one_line_with_status_1(
    tool: Tool, words: dict[str, str], line: str
) -> None:
    done = tool(*fill(line, words))
    assert (done.status, done.stdout) == (1, "")
    assert re.fullmatch(r"error: [^\n]+\n", done.stderr)
    assert NAMED_ERRORS[line].replace("{artifact}", words["artifact"]) in done.stderr
    assert not Path(words["new"]).exists(), "a refused call leaves nothing behind"


@pytest.mark.parametrize("line", WRONG_CALLS)
def test_a_wrong_call_has_status_2(tool: Tool, words: dict[str, str], line: str) -> None:
    done = tool(*fill(line, words))
    assert (done.status, done.stdout) == (2, "")
    assert "Usage: " in done.stderr
    assert "Traceback" not in done.stderr
    assert WRONG_CALLS[line] in done.stderr


def test_an_artifact_that_was_not_built_names_the_command_that_builds_it(
    tool: Tool, artifact_copy: Path
) -> None:
    path = artifact_copy / FILE_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {"targets": {}}))
    done = tool("run", artifact_copy, "hi")
    assert (done.status, done.stdout) == (1, "")
    assert f"run `tool.py build {artifact_copy} --target cpu`" in done.stderr


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device", "out/a"), "out/a: no space left on the disk"),
        (PermissionError(13, "Permission denied", "out/a"), "out/a: Permission denied"),
        (MemoryError(), "out of memory"),
    ],
)
def test_an_error_of_the_machine_is_one_line_too(
    tool: Tool, monkeypatch: pytest.MonkeyPatch, artifact: Path, error: BaseException, line: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("commands.output.facts", fail)
    done = tool("inspect", artifact)
    assert (done.status, done.stdout) == (1, "")
    assert re.fullmatch(rf"error: {line}[^\n]*\n", done.stderr)


def test_a_bug_is_not_dressed_up_as_an_error(
    tool: Tool, monkeypatch: pytest.MonkeyPatch, artifact: Path
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("commands.output.facts", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        tool("inspect", artifact)


@pytest.mark.parametrize("wrapper", [None, ImportError, OSError])
def test_ctrl_c_is_130_whatever_it_was_turned_into(
    tool: Tool,
    monkeypatch: pytest.MonkeyPatch,
    artifact: Path,
    wrapper: type[Exception] | None,
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            if wrapper is None:
                raise
            raise wrapper("initialization failed") from error

    monkeypatch.setattr("commands.output.facts", interrupt)
    done = tool("inspect", artifact)
    assert (done.status, done.stdout, done.stderr) == (outcome.INTERRUPTED, "", "interrupted\n")


def test_an_error_is_one_line_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    output.error("a [int8]\nfile\x1b[2J of " + "long/" * 100)
    line = capsys.readouterr().err
    assert line == "error: a [int8] file\N{REPLACEMENT CHARACTER}[2J of " + "long/" * 100 + "\n"
