"""`serve`: an artifact behind OpenAI's chat API."""

import signal
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runtime.server.flags import FLAGS

from . import answering, options, output
from .flag_groups import with_flag_groups

if TYPE_CHECKING:
    from runtime.server.options import ServerOptions


def _flag(name: str, *, no_default: str | None = None) -> Any:  # noqa: ANN401  typer hides its types
    """Make the option of a field, with the words that the wheel's own command line has."""
    flag = FLAGS[name]
    metavar = None if flag.is_switch else flag.metavar
    shown: Any = no_default or not flag.is_repeated
    return typer.Option(flag.name, help=flag.help, metavar=metavar, show_default=shown)


@dataclass(frozen=True, kw_only=True)
class ServeFlags:
    """Where to listen, for whom, and the most that a request may ask for."""

    host: Annotated[str, _flag("host")] = "127.0.0.1"
    port: Annotated[int, _flag("port")] = 8000
    model_names: Annotated[list[str] | None, _flag("model_names")] = None
    api_keys: Annotated[Path | None, _flag("api_keys", no_default="none")] = None
    allow_anyone: Annotated[bool, _flag("allow_anyone")] = False
    max_body_bytes: Annotated[int, _flag("max_body_bytes")] = 32 << 20
    max_images: Annotated[int, _flag("max_images")] = 32
    max_new_tokens: Annotated[
        int | None, _flag("max_new_tokens", no_default="all that fit a slot")
    ] = None
    max_queued: Annotated[int, _flag("max_queued")] = 64
    chunk_beside_decoding: Annotated[
        int | None, _flag("chunk_beside_decoding", no_default="the artifact's prefill chunk")
    ] = None
    queue_timeout_s: Annotated[
        float | None, _flag("queue_timeout_s", no_default="as long as the request may take")
    ] = None
    request_timeout_s: Annotated[float, _flag("request_timeout_s")] = 600.0
    drain_timeout_s: Annotated[float, _flag("drain_timeout_s")] = 30.0
    image_cache_bytes: Annotated[int, _flag("image_cache_bytes")] = 256 << 20
    image_hosts: Annotated[list[str] | None, _flag("image_hosts")] = None
    cors_origins: Annotated[list[str] | None, _flag("cors_origins")] = None

    def make_options(self, default_name: str) -> "ServerOptions":
        """Turn the flags into what the server takes.

        Raises:
            InputError: some values have no meaning, or leave the model to everybody unasked.
        """
        from runtime.server.options import ServerOptions

        given = {field.name: getattr(self, field.name) for field in fields(self)}
        repeated = {name: tuple(given[name] or ()) for name in FLAGS if FLAGS[name].is_repeated}
        names = repeated.pop("model_names") or (default_name,)
        return ServerOptions(**{**given, **repeated, "model_names": names})


@with_flag_groups
def serve(
    artifact: options.ArtifactArgument,
    *,
    target: options.TargetOption = "cpu",
    threads: options.ThreadsOption = None,
    cpu_weights: options.CpuWeightsOption = "auto",
    release: options.ReleaseOption = None,
    flags: ServeFlags,
) -> None:
    """Serve the model over HTTP, in the dialect of OpenAI's chat API, with a chat page at /.

    SIGTERM and Ctrl-C let running requests finish; a second one ends them. docs/serving.md tells
    which fields requests may have.
    """
    from runtime.server.serving import log_to_stderr, name_of
    from runtime.server.serving import serve as serve_session

    chosen = flags.make_options(name_of(artifact))
    log_to_stderr()
    ended_by = serve_session(
        lambda: answering.open_session(
            artifact, target, release, threads=threads, weights=cpu_weights
        ),
        chosen,
        announce=lambda url: output.note(f"serving {chosen.model_names[0]} at {url}"),
    )
    if ended_by is signal.SIGINT:
        raise KeyboardInterrupt
