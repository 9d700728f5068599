"""Configs of any kind, from files and command lines: a config that comes back from its dump, or one clear ConfigError.

Every case starts from a recipe that works, so that most get as far as the parts. `make test` tries 350 cases;
those marked slow are 8,100. They are the same in every run.
"""

import warnings
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from exploring import Explore, profile
from hypothesis import strategies as st
from small_data import RECIPES, logged

from mim import ConfigError, load_config
from mim.config import parse_config, schema
from mim.config.schema import TOP
from mim.io.sections import LISTS
from mim.registry import Key

LONGEST = 6_000  # characters of a message


# -------------------------------------------------------------------- cases

ODD = st.sampled_from(
    [
        *("", " ", "~", "null", "0", "-0", "-1", "1", "2", "3", "7", "16", "32", "1e3", "1e999", "nan", "-inf", "0x10"),
        *("1_000", "9" * 40, "9" * 5000, "१२", "true", "False", "yes", "auto", "estimate", "a: b", "[", "]", "{}"),
        *("[1, 2]", "[32, 64]", "[[1], 2]", "[1e9, 1e9]", "[1000000000, 1000000000]", "[0, 0]", "*a", "&a 3", "!!str"),
        *(
            "!!python/name:os.system",
            "a\nb",
            "\x1b[31m",
            "[red]x[/red]",
            "\udcff",
            "\0",
            "a" * 3000,
            "é",
            "－1",
            "=",
            "--x",
        ),
    ]
)
NUMBERS = st.one_of(st.integers(-3, 70), st.integers(), st.floats()).map(str)
WORDS = st.one_of(ODD, NUMBERS, st.text(max_size=8))


def keys_of_task(task: str) -> dict[str, Key]:
    """Every key of a task with every part, by its full name."""
    keys: dict[str, Key] = dict(TOP)
    for section in schema.sections(task):
        parts = schema.family(section).members() if section in schema.FAMILIES else {"": None}
        for name, part in parts.items():
            if part is None or part.__module__.startswith("mim."):
                keys |= {f"{section}.{key}": kind for key, kind in schema.section_keys(task, section, name).items()}
        if section in schema.FAMILIES:
            keys[f"{section}.name"] = Key(Literal[tuple(parts)], "")
    return {key: kind for key, kind in keys.items() if key not in ("PLUGINS", "TASK")}


def keys_of_recipe(task: str) -> dict[str, Key]:
    """The keys that its recipe may have."""
    cfg = parse_config(RECIPES[task])
    return {key: kind for key, kind in KEYS[task].items() if key in cfg.flat()}


KEYS = {task: keys_of_task(task) for task in schema.TASKS}
RECIPE_KEYS = {task: keys_of_recipe(task) for task in schema.TASKS}


def seldom(draw: st.DrawFn, one_of: int) -> bool:
    return draw(st.integers(1, one_of)) == one_of


def fitting(annotation: Any) -> st.SearchStrategy[str]:
    """Texts that an annotation takes, mostly in the range of a small model."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return st.sampled_from(list(map(str, arguments)))
    if origin is tuple:
        inside = fitting(arguments[0])
        count = (0, 4) if arguments[1:] == (...,) else (len(arguments),) * 2
        items = st.lists(inside, min_size=count[0], max_size=count[1])
        quote = "" if get_origin(arguments[0]) is tuple else "'"  # a list of lists
        return items.map(lambda values: "[" + ", ".join(f"{quote}{item}{quote}" for item in values) + "]")
    if origin is Union or len(arguments) > 1:
        return st.one_of(*map(fitting, arguments))
    if annotation is bool:
        return st.sampled_from(["true", "false", "True"])
    if annotation is int:
        near = st.sampled_from(["0", "1", "2", "4", "8", "16", "32", "64"])
        return st.one_of(near, near, near, st.integers(-2, 10**6).map(str))
    if annotation is float:
        shares = st.sampled_from(["0.25", "0.5", "0.9", "1", "1e-3", "0"])
        return st.one_of(shares, shares, st.floats(0, 1).map(str), st.floats(allow_nan=False).map(str))
    return st.sampled_from(["", "x", "/nowhere", "07", "a b"])


@st.composite
def pairs(draw: st.DrawFn, task: str) -> list[str]:
    """Overrides: most with a key and a value that fits it."""
    overrides: dict[str, str] = {}
    for _ in range(draw(st.integers(0, 3))):
        keys = KEYS if seldom(draw, 6) else RECIPE_KEYS
        key = draw(WORDS) if seldom(draw, 30) else draw(st.sampled_from(sorted(keys[task])))
        kind = KEYS[task].get(key)
        odd = kind is None or seldom(draw, 12)
        section, _, inner = key.partition(".")
        if section in LISTS and seldom(draw, 3):
            key = f"{section}.{draw(st.integers(0, 2))}.{inner}"
        overrides[key] = draw(WORDS if odd else fitting(kind.annotation))
    words = [word for pair in overrides.items() for word in pair]
    return words[:-1] if seldom(draw, 60) else words


@st.composite
def mutated(draw: st.DrawFn) -> tuple[bytes, list[str]]:
    """A recipe with keys changed, taken out, moved, or put in another section, and overrides."""
    task = draw(st.sampled_from(schema.TASKS))
    raw = yaml.load(RECIPES[task], yaml.BaseLoader)
    for _ in range(draw(st.integers(0, 3))):
        section = draw(st.sampled_from(list(raw)))
        content = raw[section]
        changes = ["drop", "odd", "swap", "section", "structure", "list"]
        change = draw(st.sampled_from(changes)) if seldom(draw, 5) else "value"
        if change == "value":
            key = draw(st.sampled_from(sorted(key for key in RECIPE_KEYS[task] if "." in key)))
            name, _, inner = key.partition(".")
            if isinstance(raw.setdefault(name, {}), dict):
                raw[name][inner] = yaml.load(draw(fitting(KEYS[task][key].annotation)) or "''", yaml.BaseLoader)
        elif change == "drop" and len(raw) > 1:
            del raw[section]
        elif change == "odd" and isinstance(content, dict) and content:
            content[draw(st.sampled_from(list(content)))] = draw(WORDS)
        elif change == "swap" and isinstance(content, dict) and len(content) > 1:
            one, other = draw(st.permutations(list(content)))[:2]
            content[one], content[other] = content[other], content[one]
        elif change == "section":
            raw[draw(st.sampled_from([*schema.ORDER, "X"]))] = content
        elif change == "structure":
            raw[section] = draw(STRUCTURES)
        elif change == "list":
            name = draw(st.sampled_from([section, *LISTS]))
            raw[name] = [raw.get(name, {}), *draw(st.lists(st.just({}), max_size=2))]
    return yaml.safe_dump(raw, allow_unicode=draw(st.booleans())).encode("utf-8", "surrogatepass"), draw(pairs(task))


STRUCTURES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), ODD),
    lambda inside: st.one_of(
        st.lists(inside, max_size=3),
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers(0, 3)), inside, max_size=3),
    ),
    max_leaves=12,
)
MARKS = st.sampled_from([*": ,[]{}&*!|>'\"%@`#-?\n\t\r\\~<=.\ufeff\u2028\x85\0aA10", "---\n", "<<: ", "!!", "\n  "])


LETTERS = st.one_of(st.sampled_from(list(" \n0123456789abceinot_#")), st.text(max_size=3))


@st.composite
def broken_text(draw: st.DrawFn) -> tuple[bytes, list[str]]:
    """A recipe into whose text marks of YAML, or other letters, were put."""
    task = draw(st.sampled_from(schema.TASKS))
    text = RECIPES[task]
    for _ in range(draw(st.integers(1, 3))):
        position = draw(st.integers(0, len(text)))
        skipped = draw(st.sampled_from([0, 0, 1, 5]))
        text = text[:position] + draw(MARKS if seldom(draw, 2) else LETTERS) + text[position + skipped :]
    return text.encode("utf-8", "surrogatepass"), draw(pairs(task)) if seldom(draw, 3) else []


@st.composite
def broken_bytes(draw: st.DrawFn) -> tuple[bytes, list[str]]:
    """A recipe of which bytes were changed, or that is no text at all."""
    if seldom(draw, 6):
        return draw(st.binary(max_size=60)), []
    content = bytearray(RECIPES[draw(st.sampled_from(schema.TASKS))].encode())
    for _ in range(draw(st.integers(1, 3))):
        content[draw(st.integers(0, len(content) - 1))] = draw(
            st.one_of(st.sampled_from(b" \n,:0123456789aeinot_#"), st.integers(0, 255))
        )
    return bytes(content[: draw(st.integers(0, len(content)))] if seldom(draw, 8) else content), []


# -------------------------------------------------------------------- the property


def check_load(path: Path, case: tuple[bytes, list[str]]) -> None:
    """A config that its dump gives back and that builds (loading does that), or a ConfigError; no warnings."""
    content, overrides = case
    path.write_bytes(content)
    refusal, cfg = "", None
    with warnings.catch_warnings(), logged():
        warnings.simplefilter("error")
        try:
            cfg = load_config(path, overrides)
        except ConfigError as error:
            refusal = str(error)
    if cfg is None:
        assert overrides or str(path) in refusal  # what overrides alone break is named without the file
        assert 5 < len(refusal.replace(str(path), "")) < LONGEST
        return
    reread = parse_config(cfg.to_yaml())
    assert reread == cfg
    assert reread.to_yaml() == cfg.to_yaml()


@profile(15, 800)
def test_fuzz_config_of_changed_recipes(tmp_path: Path, cases: int, explore: Explore) -> None:
    explore("config recipes", cases, mutated(), lambda case: check_load(tmp_path / "recipe.yaml", case))


@profile(150, 4500)
def test_fuzz_config_of_broken_texts(tmp_path: Path, cases: int, explore: Explore) -> None:
    explore("config texts", cases, broken_text(), lambda case: check_load(tmp_path / "recipe.yaml", case))


@profile(80, 1500)
def test_fuzz_config_of_broken_bytes(tmp_path: Path, cases: int, explore: Explore) -> None:
    explore("config bytes", cases, broken_bytes(), lambda case: check_load(tmp_path / "recipe.yaml", case))


@profile(80, 1300)
def test_fuzz_config_of_structures(tmp_path: Path, cases: int, explore: Explore) -> None:
    strategy = STRUCTURES.map(lambda structure: (yaml.safe_dump(structure).encode("utf-8", "surrogatepass"), []))
    explore("config structures", cases, strategy, lambda case: check_load(tmp_path / "recipe.yaml", case))
