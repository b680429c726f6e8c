"""Recipes: the named ones, their round trip, and every way that a file can be wrong."""

import tomllib
from pathlib import Path

import pytest

from export.recipe.reading import (
    NAMED_FOLDER,
    load_recipe,
    parse_recipe,
    recipe_from_values,
    recipe_names,
)
from export.recipe.recipe import (
    PARTS,
    ActivationFormat,
    Budget,
    CacheFormat,
    PartRecipe,
    Recipe,
    WeightFormat,
)
from runtime.errors import InputError

NAMES = recipe_names()


def refusal(text: str) -> str:
    """The message of a recipe that must be refused."""
    with pytest.raises(InputError) as caught:
        parse_recipe(text, "mine", "mine.toml")
    return str(caught.value)


def head(line: str) -> str:
    """A recipe with one part."""
    return f"[parts.head]\n{line}"


def test_the_named_recipes_are_the_files_in_alphabetical_order() -> None:
    assert {"fp32", "fp16", "bf16", "int8", "fp8", "int4", "int4-fp8", "nvfp4"} <= set(NAMES)
    assert list(NAMES) == sorted(path.stem for path in NAMED_FOLDER.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_a_named_recipe_says_what_its_file_says(name: str) -> None:
    recipe = load_recipe(name)
    file = tomllib.loads((NAMED_FOLDER / f"{name}.toml").read_text())
    assert recipe.name == name
    assert recipe.summary == file["summary"]
    assert recipe.summary.endswith(".")
    assert recipe.base == file.get("base", "bf16")
    assert recipe.may_round_activations == file.get("may_round_activations", False)
    assert recipe.is_quantised == ("parts" in file)
    parts = dict(file.get("parts", {}))
    assert ({"weights": recipe.embedding} if recipe.embedding else None) == parts.pop(
        "embedding", None
    )
    assert (recipe.cache.values() if recipe.cache else None) == parts.pop("cache", None)
    assert set(recipe.parts) == set(parts)
    for part, values in parts.items():
        assert recipe.parts[part].weights.codes == values["weights"]
        acts = recipe.parts[part].activations
        assert (acts.codes if acts else None) == values.get("activations")
    for key, value in file.get("budget", {}).items():
        assert getattr(recipe.budget, key) == value


@pytest.mark.parametrize("name", NAMES)
def test_a_named_recipe_survives_its_values(name: str) -> None:
    recipe = load_recipe(name)
    again = recipe_from_values(recipe.values(), name, "manifest.json")
    assert (again.base, again.parts) == (recipe.base, recipe.parts)
    assert (again.embedding, again.cache) == (recipe.embedding, recipe.cache)
    assert again.may_round_activations == recipe.may_round_activations
    assert again.values() == recipe.values()


@pytest.mark.parametrize("balance", ["none", "smooth", "activation-aware"])
@pytest.mark.parametrize("scale", ["static", "dynamic"])
@pytest.mark.parametrize("observer", ["max", "percentile", "mse"])
@pytest.mark.parametrize("codes", ["int8", "fp8"])
def test_values_survive_being_read(codes: str, observer: str, scale: str, balance: str) -> None:
    part: dict[str, object] = {
        "weights": "int4",
        "group": 64,
        "activations": codes,
        "scale": scale,
    }
    if scale == "static":
        part["observer"] = observer
    if balance != "none":
        part["balance"] = balance
    if balance == "smooth":
        part["strength"] = 0.75
    values = {"base": "fp16", "parts": {"experts": part, "head": {"weights": "fp8", "clip": True}}}
    assert recipe_from_values(values, "mine", "manifest.json").values() == values


ALL_OF_IT = """
summary = "Mine."
base = "fp16"
may_round_activations = true
[budget]
kl = 1
top1 = 0.5
exact_match = 0.25
[parts.experts]
weights = "int4"
group = 64
activations = "int8"
scale = "static"
observer = "percentile"
balance = "smooth"
strength = 0.25
clip = true
[parts.embedding]
weights = "int8"
[parts.cache]
latent = "int8"
group = 64
"""


def test_all_that_a_file_can_say_is_read() -> None:
    experts = PartRecipe(
        weights=WeightFormat(codes="int4", group=64),
        activations=ActivationFormat(codes="int8", scale="static", observer="percentile"),
        balance="smooth",
        strength=0.25,
        clip=True,
    )
    assert parse_recipe(ALL_OF_IT, "mine", "mine.toml") == Recipe(
        name="mine",
        summary="Mine.",
        base="fp16",
        may_round_activations=True,
        parts={"experts": experts},
        embedding="int8",
        cache=CacheFormat(latent="int8", group=64),
        budget=Budget(kl=1, top1=0.5, exact_match=0.25),
    )


def test_recipes_of_weights_alone_let_nothing_be_rounded() -> None:
    rounding = {name for name in NAMES if load_recipe(name).may_round_activations}
    assert rounding == {"int8", "int8-smooth", "int4", "int4-kv8"}


def test_an_empty_file_is_the_releases_own_type() -> None:
    assert parse_recipe("", "mine", "mine.toml") == Recipe(name="mine", base="bf16")


def test_nvfp4_needs_neither_its_group_nor_its_scale() -> None:
    short = parse_recipe(head('weights = "nvfp4"\nactivations = "nvfp4"'), "mine", "mine.toml")
    long = parse_recipe(
        head('weights = "nvfp4"\ngroup = 16\nactivations = "nvfp4"\nscale = "dynamic"'),
        "mine",
        "mine.toml",
    )
    assert short == long
    assert str(short.parts["head"]) == "nvfp4/16 x nvfp4 dynamic"


MALFORMED = [
    ("bases = 1", "bases: unknown; known are summary, base, may_round_activations"),
    ("may_round_activations = 1", "may_round_activations = 1: expected true or false"),
    ('base = "int8"', "base = 'int8': expected one of fp32, fp16, bf16"),
    ("base = []", "base = []: expected one of"),
    ("parts = 3", "parts = 3: expected a table"),
    ("budget = [1]", "budget = [1]: expected a table"),
    ("[parts]\nhead = 1", "head = 1: expected a table"),
    ('[parts.router]\nweights = "int8"', "parts.router: unknown; known are vision, projector"),
    (head('activations = "int8"'), "parts.head: lacks weights; leave the part out"),
    (head('weights = "int8"\nbits = 4'), "parts.head.bits: unknown; known are weights, group"),
    (head('weights = "int2"'), "weights = 'int2': expected one of int8, int4, fp8, nvfp4"),
    (head("weights = 8"), "weights = 8: expected one of"),
    (head('weights = "int4"\ngroup = 48'), "group = 48: expected one of 16, 32, 64, 128, or no"),
    (head('weights = "int4"\ngroup = "32"'), "group = '32': expected one of"),
    (head('weights = "int8"\ngroup = true'), "group = True: expected one of"),
    (head('weights = "int8"\nactivations = "int4"'), "expected one of int8, fp8, nvfp4"),
    (head('weights = "int8"\nactivations = {}'), "activations = {}: expected one of"),
    (
        head('weights = "int8"\nactivations = "int8"\nscale = "token"'),
        "scale = 'token': expected one of static, dynamic",
    ),
    (
        head('weights = "int8"\nactivations = "int8"\nobserver = "mean"'),
        "observer = 'mean': expected one of max, percentile, mse",
    ),
    (
        head('weights = "int8"\nbalance = "awq"'),
        "balance = 'awq': expected one of none, smooth, activation-aware",
    ),
    (head('weights = "int8"\nstrength = 0'), "strength = 0: expected a number between 0 and 1"),
    (head('weights = "int8"\nstrength = 1.0'), "strength = 1.0: expected a number between"),
    (head('weights = "int8"\nstrength = nan'), "strength = nan: expected a number between"),
    (head('weights = "int8"\nstrength = "a"'), "strength = 'a': expected a number between"),
    (head('weights = "int8"\nclip = 1'), "clip = 1: expected true or false"),
    ('[parts.embedding]\nweights = "int4"', "parts.embedding.weights = 'int4': expected int8"),
    ('[parts.embedding]\nweights = "int8"\ngroup = 32', "parts.embedding.group: unknown"),
    ("[parts.embedding]", "parts.embedding.weights = None: expected int8"),
    ('[parts.cache]\nlatent = "fp8"', "parts.cache.latent = 'fp8': expected int8; leave the part"),
    ('[parts.cache]\nlatent = "int8"\ngroup = 256', "parts.cache.group = 256: expected one of 16"),
    ('[parts.cache]\nlatent = "int8"\ngroup = true', "parts.cache.group = True: expected one of"),
    (
        '[parts.cache]\nlatent = "int8"\nkeys = "int8"',
        "parts.cache.keys: unknown; known are",
    ),
    ("parts.cache = 3", "cache = 3: expected a table"),
    ("[budget]\nkll = 1", "budget.kll: unknown; known are kl, top1, exact_match"),
    ("[budget]\nkl = -0.1", "budget.kl = -0.1: expected a number from 0"),
    ('[budget]\ntop1 = "1"', "budget.top1 = '1': expected a number from 0"),
    ("[budget]\nexact_match = true", "budget.exact_match = True: expected a number from 0"),
]
CONTRADICTORY = [
    ('weights = "nvfp4"\ngroup = 32', "group = 32: nvfp4 has groups of 16"),
    ('weights = "int4"', "int4 needs a group"),
    (
        'weights = "fp8"\nactivations = "nvfp4"',
        "activations in nvfp4 meet weights in nvfp4, not in fp8",
    ),
    (
        'weights = "nvfp4"\nactivations = "nvfp4"\nscale = "static"',
        "activations in nvfp4 have dynamic scales",
    ),
    ('weights = "int8"\nscale = "static"', "scale and observer"),
    ('weights = "int8"\nobserver = "max"', "scale and observer"),
    ('weights = "int8"\nbalance = "smooth"', "balance = 'smooth' makes activations easier"),
]


@pytest.mark.parametrize(
    ("text", "problem"), [*MALFORMED, *((head(text), problem) for text, problem in CONTRADICTORY)]
)
def test_what_is_wrong_in_a_file_is_named(text: str, problem: str) -> None:
    message = refusal(text)
    assert message.startswith("mine.toml: ")
    assert problem in message
    assert "\n" not in message


def test_the_table_of_problems_has_every_key() -> None:
    """A key that is added without a refusal is found here."""
    checked = " ".join(problem for _, problem in [*MALFORMED, *CONTRADICTORY])
    known = refusal(head('weights = "int8"\nx = 1')).partition("known are ")[2]
    for key in known.split(", "):
        assert f"{key} = " in checked
    for part in PARTS:
        assert part in refusal('[parts.router]\nweights = "int8"')


def test_all_problems_are_counted_in_one_line() -> None:
    message = refusal(
        """
        base = "x"
        [budget]
        kl = -1
        [parts.head]
        weights = "int8"
        clip = "yes"
        [parts.vision]
        weights = "int4"
        balance = "smooth"
        """
    )
    assert message == (
        "mine.toml: 5 problems: base = 'x': expected one of fp32, fp16, bf16; "
        "parts.vision: int4 needs a group (32, 64 or 128): "
        "one scale for a whole column is too few; "
        "parts.vision: balance = 'smooth' makes activations easier to round, and none are; "
        "parts.head.clip = 'yes': expected true or false; "
        "budget.kl = -1: expected a number from 0"
    )


def test_more_than_five_problems_are_five_and_a_count() -> None:
    message = refusal("\n".join(f"key{i} = 1" for i in range(9)))
    assert message.startswith("mine.toml: 9 problems: key0: unknown")
    assert message.endswith("; and 4 more")


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InputError) as caught:
        load_recipe("int5")
    message = str(caught.value)
    assert message.startswith("recipe 'int5': known ones are ")
    assert ", ".join(NAMES) in message
    assert "path of a .toml file" in message


@pytest.mark.parametrize("name", ["", "../named/int8", "INT8", "int8 "])
def test_a_name_is_never_taken_as_a_path(name: str) -> None:
    with pytest.raises(InputError, match="known ones are"):
        load_recipe(name)


def test_an_own_file_is_called_by_its_stem(tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(head('weights = "fp8"'), encoding="utf-8")
    assert load_recipe(str(path)).name == "small"


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"base = ", "not TOML"), (b"\xff\xfe", "not readable"), (b"base = 1\nbase = 2", "not TOML")],
)
def test_a_file_that_is_no_toml_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=problem) as caught:
        load_recipe(str(path))
    assert str(path) in str(caught.value)
    with pytest.raises(InputError, match=r"absent\.toml: no such file$"):
        load_recipe(str(tmp_path / "absent.toml"))


@pytest.mark.parametrize("part", ['embedding]\nweights = "int8"', 'cache]\nlatent = "int8"'])
def test_a_recipe_of_the_embedding_or_the_cache_alone_is_quantised(part: str) -> None:
    recipe = parse_recipe(f"[parts.{part}", "mine", "mine.toml")
    assert recipe.is_quantised
    assert recipe.parts == {}
