"""What `bench` found, as tables on stdout and warnings on stderr."""

from typing import TYPE_CHECKING

from . import output

if TYPE_CHECKING:
    from engines.measure.report import Report
    from engines.measure.samples import Spread
    from engines.measure.timing import TimedRow

_WARM_SHARE, _COLD_SHARE = 0.99, 0.01
_PERCENTILES = ("p50", "p90", "p99")


def show(found: "Report") -> None:
    """Print all tables."""
    if found.timed.rows:
        _show_rows(found)
    if found.timed.images:
        _show_images(found)
    _show_start(found)
    _show_memory(found)


def warn(found: "Report") -> None:
    """Say what makes figures doubtful."""
    taken = found.timed.disturbance
    if taken.is_noticeable:
        hit = [one.row.name for one in found.timed.rows if one.disturbance.is_noticeable]
        stolen = f", and {taken.stolen_cores:.2f} were stolen by the host" * bool(
            round(taken.stolen_cores, 2)
        )
        output.note(
            f"warning: other processes kept {taken.others_cores:.2f} cores busy while rows were "
            f"timed{stolen}; load average {found.load_average:.1f} before; rows that suffered: "
            f"{', '.join(hit) or 'images'}; repeat on a quiet machine"
        )
    roof = found.roof
    if roof is None:
        output.note(
            f"note: target {found.target} does not read this machine's memory: bytes moved and "
            "share of the limit are known for target cpu only"
        )
    elif not roof.is_memory:
        output.note(
            f"note: a token reads {output.size(int(roof.traffic.at(0)))}, which the last cache "
            f"({output.size(roof.last_cache_bytes)}) may hold: memory is no limit"
        )
    elif roof.bandwidth.reader == "numpy":
        output.note(
            "note: bandwidth was read by numpy, up to a fifth under what `make ops` reads: shares "
            "of the limit are too high by as much"
        )


def _show_rows(found: "Report") -> None:
    columns = ("test", "tokens/s", "p50 ms", "p90 ms", "p99 ms", "moved a token", "limit", "share")
    output.table(columns, [_row(found, one) for one in found.timed.rows])
    if found.roof is not None:
        output.heading(
            f"memory bandwidth {found.roof.bandwidth.median:.1f} GB/s, read only, "
            f"{found.threads} threads, before and after"
        )


def _row(found: "Report", timed: "TimedRow") -> tuple[str, ...]:
    roof, row = found.roof, timed.row
    is_decode = row.kind == "decode"
    moved = None if roof is None else roof.moved_bytes(row)
    limit = None if roof is None else roof.tokens_per_s(row)
    share = found.share(timed)
    return (
        row.name,
        _with_deviation(timed.tokens_per_s),
        *(_percentiles(timed.ms_per_token) if is_decode else ("",) * len(_PERCENTILES)),
        "" if moved is None else output.size(int(moved)),
        "" if limit is None else f"{limit:.1f}",
        "" if share is None else f"{100 * share:.0f} %",
    )


def _show_images(found: "Report") -> None:
    from engines.measure.samples import Spread

    output.heading("images: the vision encoder alone")
    rows = []
    for one in found.timed.images:
        spread = Spread.of([1000 * sample for sample in one.samples_s])
        counts = (f"{one.patches:,}", f"{one.image_tokens:,}")
        rows.append((f"vit {one.size}", *counts, _with_deviation(spread), *_percentiles(spread)))
    output.table(("test", "patches", "image tokens", "ms", "p50 ms", "p90 ms", "p99 ms"), rows)


def _show_start(found: "Report") -> None:
    start = found.start
    times, share = start.times, start.cached.share
    output.heading(f"a fresh process, {_page_cache(share)}")
    asked = "no image" if start.image is None else f"an image of {start.image}"
    rows = [
        ("Python and packages", f"{times.start_s:.2f} s"),
        ("artifact opened", f"{times.open_s:.2f} s"),
        ("ready", f"{times.ready_s:.2f} s"),
        (f"first token, {asked}", f"{times.first_token_s:.2f} s"),
        ("  patches and prompt", f"{times.patch_s:.2f} s"),
        (f"  vision, {times.image_tokens} image tokens", f"{times.vision_s:.2f} s"),
        (f"  prefill, {times.prompt_tokens} tokens", f"{times.prefill_s:.2f} s"),
        ("  choice", f"{times.choose_s:.2f} s"),
    ]
    output.table((), rows)


def _page_cache(share: float) -> str:
    if share >= _WARM_SHARE:
        return "files warm in the page cache"
    if share <= _COLD_SHARE:
        return "files cold: none in the page cache"
    return f"{100 * share:.0f} % of the files in the page cache"


def _show_memory(found: "Report") -> None:
    output.heading("memory at the peak")
    memory, cache = found.memory, found.cache_bytes()
    rows = [
        ("anonymous", output.size(memory.peak.anonymous)),
        ("  before the engine was opened", output.size(memory.idle.anonymous)),
        ("mapped from files", output.size(memory.peak.file)),
        ("cache, all slots", output.size(cache["cache_bytes"])),
        ("cache, one token", output.size(cache["cache_token_bytes"])),
    ]
    output.table((), rows)


def _with_deviation(spread: "Spread") -> str:
    return f"{spread.mean:.2f} ± {spread.deviation:.2f}"


def _percentiles(spread: "Spread") -> tuple[str, ...]:
    return tuple(f"{spread.percentiles[name]:.2f}" for name in _PERCENTILES)
