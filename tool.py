"""The toolkit's command line: `python tool.py --help`. Registers the commands, nothing else."""

import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends quietly while modules are loaded

import typer

from commands.bench import bench
from commands.bench_serve import bench_serve
from commands.build import build
from commands.calibrate import calibrate
from commands.chat import chat
from commands.compile import compile_checkpoint
from commands.default_group import DefaultGroup
from commands.doctor import doctor
from commands.eval import eval_
from commands.export import export
from commands.inspect import inspect
from commands.outcome import raise_on_sigterm, status_of
from commands.plan import plan
from commands.run import run
from commands.serve import serve
from commands.synth import synth
from commands.triton import triton
from commands.verify import verify

app = typer.Typer(
    help="Take a Kimi-VL-A3B checkpoint to tokens on your own machine.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help, the same on every terminal and in docs/cli.md
    context_settings={"help_option_names": ["-h", "--help"]},
)

# In the order of the work.
app.command("doctor")(doctor)
app.command("plan")(plan)
app.command("synth")(synth)
app.command("export")(export)
app.command("calibrate")(calibrate)
app.command("build")(build)
app.command("verify")(verify)
app.command("inspect")(inspect)
app.command("run")(run)
app.command("chat")(chat)
app.command("eval")(eval_)
app.command("serve")(serve)
app.command("triton")(triton)
app.command("compile")(compile_checkpoint)
measuring = typer.Typer(
    cls=DefaultGroup,
    help="Time an artifact on this machine (bench ARTIFACT), or an endpoint (bench serve URL).",
    no_args_is_help=True,
)
measuring.command("artifact")(bench)
measuring.command("serve")(bench_serve)
app.add_typer(measuring, name="bench")


def main() -> None:
    """Run one command and exit with its status; without arguments, print the help."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    raise_on_sigterm()
    sys.exit(status_of(app, sys.argv[1:] or ["--help"]))


if __name__ == "__main__":
    main()
