"""The documentation is true: its commands, links and the command line page.

Commands in a README's ```console block are run, those in a ```bash block only parsed: they name
a checkpoint or a machine that a test does not have.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from commands.cli_page import WIDTH, cli_page
from commands.default_group import DefaultGroup

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md"), *(ROOT / "examples").glob("**/*.md")]
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
TARGET = re.compile(r"^([a-z]+):", re.MULTILINE)
NOT_RUN = ("git clone ", "cd ", "make test")  # the network; no effect here; would start itself


def code_blocks(page: str, language: str) -> str:
    """All blocks of one language, with lines ending in a backslash joined to the next."""
    blocks = [body for found, body in FENCE.findall(page) if found == language]
    return "".join(blocks).replace("\\\n", " ")


def commands_to_run(page: str) -> list[str]:
    lines = code_blocks(page, "console").splitlines()
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def commands_to_parse(page: str) -> list[str]:
    lines = code_blocks(page, "bash").splitlines()
    return [*commands_to_run(page), *(line for line in lines if line.strip())]


def simple_commands(line: str) -> Iterator[list[str]]:
    """Split a shell line at pipes and the like into lists of words, without comments."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if set(word) <= set("|&;<>()"):
            yield words
            words = []
        else:
            words.append(word)
    yield words


def unknown_targets(page: str, targets: set[str]) -> list[str]:
    calls = [words for line in commands_to_parse(page) for words in simple_commands(line)]
    called = {word for words in calls if words[:1] == ["make"] for word in words[1:]}
    return sorted(word for word in called - targets if "=" not in word)


def wrong_calls(page: str, app: typer.Typer) -> list[str]:
    """The calls of tool.py in a page that name an unknown verb or flag."""
    findings: list[str] = []
    for line in commands_to_parse(page):
        for words in simple_commands(line):
            script = [index for index, word in enumerate(words) if word.endswith("tool.py")]
            if script:
                findings += wrong_words(words[script[0] + 1 :], typer.main.get_command(app))
    return findings


def wrong_words(words: list[str], command: Any) -> Iterator[str]:  # noqa: ANN401  typer hides its types
    path = "tool.py"
    while words and getattr(command, "commands", None) and not words[0].startswith("-"):
        default = getattr(command, "default_command", None)
        if words[0] in command.commands:
            path = f"{path} {words[0]}"
            command, words = command.commands[words[0]], words[1:]
        elif default is not None:
            command = command.commands[default]
        else:
            yield f"{path} {words[0]}: no such command"
            return
    known = {flag for param in command.params for flag in (*param.opts, *param.secondary_opts)}
    for word in words:
        flag = word.partition("=")[0]
        if re.match(r"--?[A-Za-z]", flag) and flag not in known | {"--help"}:
            yield f"{path}: no flag {flag}"


def slugs(page: str) -> set[str]:
    """The anchors that a page's headings get."""
    headings = HEADING.findall(FENCE.sub("", page))
    return {re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-") for text in headings}


def broken_links(path: Path) -> list[str]:
    findings = []
    for link in LINK.findall(FENCE.sub("", path.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        if not target.exists() or (anchor and anchor not in slugs(target.read_text())):
            findings.append(link)
    return findings


def run_here(line: str) -> "subprocess.CompletedProcess[str]":
    """Run a README line with this interpreter's environment, which `make` takes as installed."""
    prefix = shlex.quote(sys.prefix)
    stamps = " ".join(f"--assume-old={prefix}/{name}" for name in (".python", ".tool", ".dev"))
    line = re.sub(r"^make\b", f"make VENV={prefix} {stamps}", line)
    line = line.replace(".venv/bin/", f"{prefix}/bin/")
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    environment["PATH"] = f"{sys.prefix}/bin{os.pathsep}{environment['PATH']}"
    command = ["bash", "-euo", "pipefail", "-c", line]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400
    )


def make_small_app() -> typer.Typer:
    app, group = typer.Typer(add_completion=False), typer.Typer(help="Write a model repository.")

    @app.command()
    def run(artifact: str, *, max_new_tokens: int = 48, stream: bool = True) -> None:
        """Answer a question, with a sentence that is long enough to be wrapped at the margin."""

    @app.command(hidden=True)
    def secret() -> None:
        """Not shown."""

    @group.command("write")
    def write(artifact: str) -> None:
        """Write it."""

    either = typer.Typer(cls=DefaultGroup, help="Time something.")

    @either.command("artifact")
    def artifact(artifact: str, *, repeats: int = 5) -> None:
        """Time it."""

    @either.command("serve")
    def serve(url: str, *, rate: float = 1) -> None:
        """Time that."""

    app.add_typer(group, name="triton")
    app.add_typer(either, name="bench")
    return app


def test_the_command_line_page_is_fresh() -> None:
    command = [sys.executable, "-m", "commands.cli_page"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (ROOT / "docs" / "cli.md").read_text() == done.stdout, "run `make docs`"


def test_the_command_line_page_describes_every_shown_command() -> None:
    page = cli_page(make_small_app())
    assert [line for line in page.splitlines() if line.startswith("## ")] == [
        "## `python tool.py`",
        "## `python tool.py run`",
        "## `python tool.py triton`",
        "## `python tool.py triton write`",
        "## `python tool.py bench`",
        "## `python tool.py bench artifact`",
        "## `python tool.py bench serve`",
    ]
    assert "--max-new-tokens" in page
    assert "[default: 48]" in page
    assert "secret" not in page


def test_the_command_line_page_does_not_depend_on_the_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    narrow = cli_page(make_small_app())
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert cli_page(make_small_app()) == narrow
    assert "\x1b" not in narrow
    help_texts = code_blocks(narrow, "text").splitlines()
    assert max(len(line) for line in help_texts) in range(WIDTH - 20, WIDTH + 1)


def test_the_readme_names_only_targets_of_the_makefile() -> None:
    targets = set(TARGET.findall((ROOT / "Makefile").read_text()))
    assert {"demo", "test", "check"} <= targets
    assert unknown_targets(README.read_text(), targets) == []


def test_the_readme_calls_only_verbs_and_flags_that_exist() -> None:
    from tool import app

    assert wrong_calls(README.read_text(), app) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_resolves(page: Path) -> None:
    assert broken_links(page) == []


@pytest.mark.slow
def test_the_readme_commands_run_in_order() -> None:
    lines = [line for line in commands_to_run(README.read_text()) if not line.startswith(NOT_RUN)]
    assert lines.count("make demo") == 1
    for line in lines:
        done = run_here(line)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


PLANTED = """
```bash
make bake PYTHON=python3.12  # not a target
python tool.py bake && .venv/bin/python tool.py run a --max-new-token=3 | head -n 3
```

```console
$ make demo && make deploy
making a demo
$ python tool.py triton write \\
    artifact --force
$ python tool.py triton read
$ python tool.py bench artifact --repeats 3 && python tool.py bench out --rate 2
$ python tool.py bench serve url --rate 2 && python tool.py bench serve url --repeats 3
$ python tool.py run artifact --no-stream --max-new-tokens 3 "what is --this?"
```
"""


def test_planted_mistakes_in_commands_are_found() -> None:
    assert unknown_targets(PLANTED, {"demo"}) == ["bake", "deploy"]
    assert sorted(wrong_calls(PLANTED, make_small_app())) == [
        "tool.py bake: no such command",
        "tool.py bench serve: no flag --repeats",
        "tool.py bench: no flag --rate",
        "tool.py run: no flag --max-new-token",
        "tool.py triton read: no such command",
        "tool.py triton write: no flag --force",
    ]
    assert commands_to_run(PLANTED)[0] == "make demo && make deploy"


def test_planted_broken_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# The first part\n[a](page.md) [b](gone.md) [c](#the-first-part) [d](page.md#gone) "
        "[g](gone.md#x) [e](https://a.org/gone)\n```text\n[f](gone)\n```\n"
    )
    assert broken_links(page) == ["gone.md", "page.md#gone", "gone.md#x"]


def test_a_readme_line_runs_with_this_interpreter() -> None:
    done = run_here("make help | head -n 1; .venv/bin/python -c 'import sys; print(sys.prefix)'")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["make", "help", "list", "these", "commands", sys.prefix]


def test_make_takes_this_environment_as_installed() -> None:
    done = run_here("make --dry-run demo")
    assert "install" not in done.stdout, "the environment would be made again"
    assert done.stdout.count(f"{sys.prefix}/bin/python tool.py") == 2
