"""Every error a user can cause, as one tree.

    KimiVLError                 one line: what, where, expected, found, what to do
    ├── CheckpointError         the checkpoint folder: config, tensors, tokenizer files
    ├── ArtifactError           the artifact folder: manifest, hashes, missing or foreign files
    ├── InputError              messages, images, sampling values of one request
    ├── CapacityError           a prompt, image or batch over the limits, a full disk
    ├── UnsupportedError        a known thing that this toolkit does not do
    ├── NumericError            a non-finite value left the encoder or the head
    ├── GateError               a calibration that loses or has seen too little
    ├── cuda.CudaError          a call of the CUDA driver failed
    ├── generation.constraint    an answer that cannot follow its grammar
    ├── scheduling.errors        queue, deadlines, engine failures, of many requests at once
    └── server.api_errors        what a client of the server is told, with its HTTP status

Bugs stay built-in errors. The command line prints a `KimiVLError` as one line and exits with 1.
"""

from collections.abc import Sequence


class KimiVLError(Exception):
    """Base of all errors whose message is meant for the user."""


class CheckpointError(KimiVLError):
    """The checkpoint folder cannot be used as it is."""


class ArtifactError(KimiVLError):
    """The artifact folder is incomplete, altered or not ours."""


class InputError(KimiVLError):
    """A request cannot be understood: message, image or sampling value."""


class CapacityError(KimiVLError):
    """Something is larger than the limits or the machine allow."""


class UnsupportedError(KimiVLError):
    """A known option that is not implemented for this model or target."""


class NumericError(KimiVLError):
    """A NaN or infinity appeared where only finite numbers are right."""


class GateError(KimiVLError):
    """A calibration saw too little, or its recipe loses more than was allowed."""


def describe_problems(where: str, problems: Sequence[str], *, shown: int = 5) -> str:
    """Join problems into one line: their number, the first few, how many more.

    Args:
        where: the file or folder that the problems belong to.
        problems: one phrase each, without a full stop.
        shown: how many are written out.
    """
    listed = "; ".join(problems[:shown])
    rest = len(problems) - shown
    more = f"; and {rest} more" if rest > 0 else ""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return f"{where}: {count}: {listed}{more}"
