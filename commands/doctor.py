"""`doctor`: what this machine has, and what is missing."""

from dataclasses import asdict

from . import options, output


def doctor(*, json: options.JsonOption = False) -> None:
    """Look at this machine: processor, memory, disk, packages, GPU.

    Fails if something has to be changed before anything runs.
    """
    from engines.doctor import examine
    from runtime.errors import UnsupportedError, describe_problems

    findings = examine()
    if json:
        output.json_value([asdict(finding) for finding in findings])
    else:
        rows = [(f.level, f.name, f.value, f.advice) for f in findings]
        output.table(("level", "name", "value", "advice"), rows)
    failed = [f"{f.name}: {f.value}; {f.advice}" for f in findings if f.level == "fail"]
    if failed:
        raise UnsupportedError(describe_problems("this machine", failed))
