"""`synth`: a checkpoint of random values, to try the toolkit without a download."""

from pathlib import Path
from typing import Annotated

import typer

from . import options, output, summary

_Shape = Annotated[
    str,
    typer.Argument(
        metavar="SHAPE", help="tiny, full (the released sizes), or the path of a config.json."
    ),
]
_Out = Annotated[
    Path, typer.Argument(metavar="OUT", help="The checkpoint folder to make; new or empty.")
]
_Seed = Annotated[int, typer.Option(min=0, metavar="N", help="The values follow from it.")]
_Dtype = Annotated[options.Dtype, typer.Option(help="What the values are stored in.")]
_Lazy = Annotated[
    bool | None,
    typer.Option(
        "--lazy/--stored",
        help="Write only the seed, and draw the values when they are read; or write all of them.",
        show_default="stored for tiny, else lazy",
    ),
]


def synth(
    shape: _Shape,
    out: _Out,
    *,
    seed: _Seed = 0,
    dtype: _Dtype = "bfloat16",
    lazy: _Lazy = None,
    json: options.JsonOption = False,
) -> None:
    """Make a checkpoint of random values in the release's layout."""
    from export.synthetic.folder import write_synthetic

    write_synthetic(out, shape=shape, seed=seed, dtype=dtype, lazy=lazy)
    files = sorted(path for path in out.iterdir() if path.is_file())
    values = {
        "checkpoint": str(out),
        "shape": shape,
        "dtype": dtype,
        "seed": seed,
        "files": len(files),
        "size_bytes": sum(path.stat().st_size for path in files),
    }
    output.facts(values, as_json=json)
    output.note(f"next: {summary.command_text('compile', out, 'ARTIFACT')}")
