"""Recipes from TOML files, checked as a whole."""

import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from runtime.errors import InputError, describe_problems

from .recipe import (
    BASES,
    PARTS,
    ActivationFormat,
    Budget,
    CacheFormat,
    Part,
    PartRecipe,
    Recipe,
    WeightFormat,
)

AUTO = "auto"
"""Not a file: the recipe that calibration finds by itself."""
NAMED_FOLDER = Path(__file__).parent / "named"
_TOP_KEYS = ("summary", "base", "may_round_activations", "parts", "budget")
_PART_KEYS = ("weights", "group", "activations", "scale", "observer", "balance", "strength", "clip")
_OTHER_PARTS = ("embedding", "cache")
"""What a recipe may name beside the parts with matrices."""
_GROUPS = (16, 32, 64, 128)


def recipe_names() -> tuple[str, ...]:
    """List the named recipes, in alphabetical order."""
    return tuple(sorted(path.stem for path in NAMED_FOLDER.glob("*.toml")))


def load_recipe(name: str) -> Recipe:
    """Read a named recipe, or a TOML file if the name ends in `.toml`; `auto` has no parts yet.

    Raises:
        InputError: there is no such recipe, or the file is malformed; all problems are listed.
    """
    if name == AUTO:
        return Recipe(name=AUTO, summary="Chosen by measurement.", is_searched=True)
    path = Path(name) if name.endswith(".toml") else NAMED_FOLDER / f"{name}.toml"
    if not name.endswith(".toml") and name not in recipe_names():
        raise InputError(
            f"recipe {name!r}: known ones are {', '.join((*recipe_names(), AUTO))}; "
            "one of your own is the path of a .toml file"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"recipe {name}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {name}: not readable: {error}") from error
    return parse_recipe(text, path.stem, str(path))


def parse_recipe(text: str, name: str, origin: str) -> Recipe:
    """Read a recipe's TOML text.

    Args:
        text: the file.
        name: what the recipe is called where the text does not say.
        origin: the file's name, for errors.

    Raises:
        InputError: malformed; all problems are listed.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{origin}: not TOML: {error}") from error
    return recipe_from_values(values, name, origin)


def recipe_from_values(values: Mapping[str, Any], name: str, origin: str) -> Recipe:
    """Make a recipe of what its file holds, or of what `Recipe.values` gave.

    Raises:
        InputError: malformed; all problems are listed.
    """
    problems: list[str] = []
    _unknown(values, _TOP_KEYS, "", problems)
    if not isinstance(values.get("summary", ""), str):
        problems.append(f"summary = {values['summary']!r}: expected text")
    base = values.get("base", "bf16")
    if base not in BASES:
        problems.append(f"base = {base!r}: expected one of {', '.join(BASES)}")
    may_round = values.get("may_round_activations", False)
    if not isinstance(may_round, bool):
        problems.append(f"may_round_activations = {may_round!r}: expected true or false")
    sections = _table(values, "parts", problems)
    _unknown(sections, (*PARTS, *_OTHER_PARTS), "parts.", problems)
    parts: dict[Part, PartRecipe] = {}
    for part in PARTS:
        if part in sections:
            read = _part(_table(sections, part, problems), f"parts.{part}", problems)
            if read is not None:
                parts[part] = read
    embedding = _embedding(sections, problems)
    cache = _cache(sections, problems)
    budget = _budget(_table(values, "budget", problems), problems)
    if problems:
        raise InputError(describe_problems(origin, problems))
    return Recipe(
        name=name,
        summary=str(values.get("summary", "")),
        base=base,
        may_round_activations=may_round,
        parts=parts,
        embedding=embedding,
        cache=cache,
        budget=budget,
    )


def _embedding(sections: Mapping[str, Any], problems: list[str]) -> Literal["int8"] | None:
    if "embedding" not in sections:
        return None
    values = _table(sections, "embedding", problems)
    _unknown(values, ("weights",), "parts.embedding.", problems)
    if values.get("weights") != "int8":
        problems.append(
            f"parts.embedding.weights = {values.get('weights')!r}: expected int8, one scale for "
            "each token; leave the part out to keep it in the base type"
        )
    return "int8"


def _cache(sections: Mapping[str, Any], problems: list[str]) -> CacheFormat | None:
    if "cache" not in sections:
        return None
    values = _table(sections, "cache", problems)
    _unknown(values, ("latent", "group"), "parts.cache.", problems)
    if values.get("latent") != "int8":
        problems.append(
            f"parts.cache.latent = {values.get('latent')!r}: expected int8; leave the part out to "
            "keep the cache in the base type"
        )
    group = values.get("group", CacheFormat.group)
    if type(group) is not int or group not in _GROUPS:
        problems.append(
            f"parts.cache.group = {group!r}: expected one of {', '.join(map(str, _GROUPS))}"
        )
    return CacheFormat(latent="int8", group=group)


def _part(values: dict[str, Any], where: str, problems: list[str]) -> PartRecipe | None:
    _unknown(values, _PART_KEYS, f"{where}.", problems)
    before = len(problems)
    checks: dict[str, Callable[[Any], bool]] = {
        "weights": _one_of(WeightFormat, "codes"),
        "group": lambda value: type(value) is int and value in _GROUPS,
        "activations": _one_of(ActivationFormat, "codes"),
        "scale": _one_of(ActivationFormat, "scale"),
        "observer": _one_of(ActivationFormat, "observer"),
        "balance": _one_of(PartRecipe, "balance"),
        "strength": lambda value: isinstance(value, int | float) and 0 < value < 1,
        "clip": lambda value: isinstance(value, bool),
    }
    for key, is_right in checks.items():
        if key in values and not is_right(values[key]):
            problems.append(f"{where}.{key} = {values[key]!r}: {_expected(key)}")
    if "weights" not in values:
        problems.append(f"{where}: lacks weights; leave the part out to keep it in the base type")
    if len(problems) > before:
        return None
    problems += [f"{where}: {problem}" for problem in _contradictions(values)]
    if where == "parts.kv_b" and "activations" in values:
        problems.append(f"{where}: its inputs are not rounded in any recipe; leave activations out")
    group = 16 if values["weights"] == "nvfp4" else values.get("group")
    return PartRecipe(
        weights=WeightFormat(codes=values["weights"], group=group),
        activations=_activations(values),
        **{key: values[key] for key in ("balance", "strength", "clip") if key in values},
    )


def _activations(values: dict[str, Any]) -> ActivationFormat | None:
    if "activations" not in values:
        return None
    usual = "dynamic" if values["activations"] == "nvfp4" else "static"
    return ActivationFormat(
        codes=values["activations"],
        scale=values.get("scale", usual),
        observer=values.get("observer", "max"),
    )


def _contradictions(values: dict[str, Any]) -> list[str]:
    """Name combinations that mean nothing or that no target computes."""
    found = []
    codes, group, acts = values["weights"], values.get("group"), values.get("activations")
    if codes == "nvfp4" and group not in (None, 16):
        found.append(f"group = {group}: nvfp4 has groups of 16")
    if codes == "int4" and group is None:
        found.append("int4 needs a group (32, 64 or 128): one scale for a whole column is too few")
    if acts == "nvfp4" and codes != "nvfp4":
        found.append(f"activations in nvfp4 meet weights in nvfp4, not in {codes}")
    if acts == "nvfp4" and values.get("scale") == "static":
        found.append("activations in nvfp4 have dynamic scales")
    if acts is None and ("scale" in values or "observer" in values):
        found.append("scale and observer are about activations, and none are rounded")
    if "observer" in values and values.get("scale") == "dynamic":
        found.append("observer chooses static scales, and scale is dynamic")
    if "strength" in values and values.get("balance") != "smooth":
        found.append("strength is about balance = 'smooth'")
    if values.get("balance") == "smooth" and acts is None:
        found.append("balance = 'smooth' makes activations easier to round, and none are")
    return found


def _budget(values: dict[str, Any], problems: list[str]) -> Budget:
    known = [one.name for one in fields(Budget)]
    _unknown(values, known, "budget.", problems)
    for key in known:
        value = values.get(key, 0.0)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 <= value <= (math.inf if key == "kl" else 1):
            most = "" if key == "kl" else " to 1"
            problems.append(f"budget.{key} = {value!r}: expected a number from 0{most}")
    given = {key: values[key] for key in known if key in values}
    return Budget(**given)


def _table(values: Mapping[str, Any], key: str, problems: list[str]) -> dict[str, Any]:
    value = values.get(key, {})
    if isinstance(value, dict):
        return value
    problems.append(f"{key} = {value!r}: expected a table")
    return {}


def _unknown(
    values: Mapping[str, Any], known: Sequence[str], where: str, problems: list[str]
) -> None:
    problems += [
        f"{where}{key if key.isidentifier() else repr(key)}: unknown; known are {', '.join(known)}"
        for key in values
        if key not in known
    ]


def _one_of(owner: type[Any], name: str) -> Callable[[Any], bool]:
    choices = _choices(owner, name)
    return lambda value: value in choices


def _choices(owner: type[Any], name: str) -> tuple[str, ...]:
    kind: Any = owner.__annotations__[name]
    if get_origin(kind) is not Literal:
        raise TypeError(f"{owner.__name__}.{name} is not a Literal")
    return get_args(kind)


def _expected(key: str) -> str:
    owners: dict[str, tuple[type[Any], str]] = {
        "weights": (WeightFormat, "codes"),
        "activations": (ActivationFormat, "codes"),
        "scale": (ActivationFormat, "scale"),
        "observer": (ActivationFormat, "observer"),
        "balance": (PartRecipe, "balance"),
    }
    if key in owners:
        return f"expected one of {', '.join(_choices(*owners[key]))}"
    if key == "group":
        return f"expected one of {', '.join(map(str, _GROUPS))}, or no group"
    return "expected a number between 0 and 1" if key == "strength" else "expected true or false"
