"""Draw the committed question sets anew: `python -m examples.nano.make_sets [--out FOLDER]`.

The same Pillow gives the same pictures; the committed ones were drawn with Pillow 13.0.
"""

import argparse
from pathlib import Path

from .question_sets import COUNTS, SEEDS, draw_set, picture_hash, write_set

HERE = Path(__file__).parent


def make_sets(folder: Path) -> None:
    """Write all sets into `folder`, each without the pictures of those before it."""
    seen: frozenset[str] = frozenset()
    for name, seed in SEEDS.items():
        examples = list(draw_set(seed, COUNTS[name], avoid=seen))
        write_set(folder / name, iter(examples))
        seen |= {picture_hash(picture) for one in examples for picture in one.pictures}


def main() -> None:
    """Read the command line and write the sets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=HERE)
    make_sets(parser.parse_args().out)


if __name__ == "__main__":
    main()
