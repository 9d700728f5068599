"""Inheriting: what a config takes from the model whose weights its run starts from. Nothing here needs torch.

A key that the config does not set is taken from that model. One that it sets otherwise is an error, unless INIT.keep
names it, or the weights are resized for it, or they compute the same.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mim.config import annotations, catalogue, schema
from mim.config.tree import Config
from mim.errors import ConfigError
from mim.io.formatting import printable

ENCODER = "ENCODER."
NAME, CHANNELS, SIZE = "ENCODER.name", "DATA.channels", "DATA.image_size"
STATISTICS = ("DATA.mean", "DATA.std")
OF_THE_DATA = (CHANNELS, SIZE, *STATISTICS)
NEAR = 0.01  # in standard deviations: a mean and std that were rounded are the same
SMALL_EPS = 1e-6  # of a LayerNorm: smaller ones change features by less than a rounding of fp32
Raw = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known of the model whose weights a run starts from."""

    source: str  # path of its file
    values: Mapping[str, Any]  # by key, as ENCODER.width: from its config, or as its weights show
    guesses: Mapping[str, Any] = field(default_factory=dict)  # by key: values that nothing in the file says
    reasons: Mapping[str, str] = field(default_factory=dict)  # of each guess, and of keys without even a guess
    free: Collection[str] = ()  # keys of ENCODER that may differ, since the weights compute the same
    resizable: Collection[str] = (SIZE,)  # keys that may differ, since weights are resized for them
    at_another_size: Mapping[str, Any] = field(default_factory=dict)  # values to take where one of those differs
    plugins: tuple[str, ...] = ()  # Python modules with its parts
    subclasses: bool = False  # whether the name of the encoder may be another one, of a plugin
    also: Collection[str] = ()  # encoders of this toolkit that take the same weights under another name
    binding: bool = True  # whether other values are an error

    def may_differ(self, key: str) -> bool:
        return key in self.free or key in self.resizable


FindFacts = Callable[[str], ModelFacts | None]  # takes INIT.checkpoint, which may be empty


def fill(
    raw: Raw, pairs: dict[str, Any], facts: ModelFacts, init: Mapping[str, Any]
) -> tuple[Raw, dict[str, Any], list]:
    """The sections of a file and the overrides, with what is known of the model; and the keys that were taken from it.

    Args:
        raw, pairs: the file's sections and the overrides, each scalar a text.
        init: the values of INIT. Keys that `take` names are taken even where the file sets them.
    """
    raw = {section: dict(keys) if isinstance(keys, dict) else keys for section, keys in raw.items()}
    pairs, filled = dict(pairs), []
    offers = {**facts.guesses, **facts.values}
    for key in sorted(offers, key=lambda key: key not in (NAME, CHANNELS)):  # the two decide on others
        section, _, inner = key.partition(".")
        now = pairs.get(key, raw.get(section, {}).get(inner))
        certain = key in facts.values
        unknown_here = now is None or (now == "estimate" and certain and key not in init["keep"])
        if not unknown_here and not (certain and _is_taken(key, facts, pairs, init)):
            continue
        if not _belongs(key, raw, pairs, facts):
            continue
        pairs.pop(key, None)
        raw.setdefault(section, {})[inner] = annotations.as_text(offers[key])
        if key == NAME:
            raw[section] = _keys_of_part(raw[section])
        filled.append(key)
    return raw, pairs, filled


def resized(cfg: Config, facts: ModelFacts, own: Collection[str]) -> Config:
    """The config with what the weights need at another size than that of their model, unless the user set it.

    own: the keys that the user set.
    """
    flat = cfg.flat()
    keys = {key: value for key, value in facts.at_another_size.items() if key in flat and key not in own}
    sizes = [key for key in facts.resizable if key not in facts.at_another_size and key in flat and key in facts.values]
    if not keys or all(flat[key] == facts.values[key] for key in sizes):
        return cfg
    return replace(cfg.replace(keys), set_keys=cfg.set_keys)


def check(cfg: Config, facts: ModelFacts, overrides: Collection[str] = ()) -> None:
    """Raises ConfigError, with both values, where a config sets what the weights compute otherwise than their model.

    overrides: the keys of the command line.
    """
    wrong = {key: values for key, values in differences(cfg, facts).items() if not facts.may_differ(key)}
    wrong = {key: values for key, values in wrong.items() if key not in cfg.INIT.keep}
    is_of_a_plugin = cfg.ENCODER.name not in catalogue.names(schema.FAMILIES["ENCODER"].module)
    if cfg.ENCODER.name in facts.also or (facts.subclasses and is_of_a_plugin):
        wrong.pop(NAME, None)
    if cfg.INIT.adapt_channels:
        wrong.pop(CHANNELS, None)
    if not wrong or not facts.binding:
        return
    lines = [f"  {key}: {_text(ours)} here, {_text(theirs)} there" for key, (ours, theirs) in wrong.items()]
    names = f'"[{", ".join(wrong)}]"'
    take = "" if all(key in overrides for key in wrong) else f", or replace those of the file by INIT.take {names}"
    adapt = ". INIT.adapt_channels true adapts the first layer to the channels" if CHANNELS in wrong else ""
    raise ConfigError(
        f"{facts.source} was trained with other values, with which its weights compute something else:\n"
        + "\n".join(lines)
        + f"\nLeave these keys out, and they are taken from there{take}; or keep the values here with INIT.keep {names}"
        + adapt
    )


def differences(cfg: Config, facts: ModelFacts) -> dict[str, tuple[Any, Any]]:
    """The keys whose value in a config differs from that of the model, with both values.

    Where the encoders are of different names, that is the only difference; where the channels differ, so do mean and
    std, which are then left out.
    """
    flat = cfg.flat()
    keys = [key for key in facts.values if key in flat]
    if NAME in keys and flat[NAME] != facts.values[NAME]:
        return {NAME: (flat[NAME], facts.values[NAME])}
    if CHANNELS in keys and flat[CHANNELS] != facts.values[CHANNELS]:
        keys = [key for key in keys if key not in STATISTICS]
    return {key: (flat[key], facts.values[key]) for key in keys if not _is_same(key, flat, facts.values)}


def lines(cfg: Config, facts: ModelFacts, filled: Collection[str]) -> list[str]:
    """What a config has from the model, what differs and may, and what is guessed: for the log.

    filled: the keys that were taken from the model.
    """
    flat = cfg.flat()
    taken = [f"{key} {_text(flat[key])}" for key in filled if key in facts.values and key in flat]
    other = [
        f"{key} {_text(ours)} ({_text(theirs)} there)"
        for key, (ours, theirs) in differences(cfg, facts).items()
        if key not in facts.free and key not in filled
    ]
    guesses = guess_line(cfg, facts)
    return [
        *([f"  taken from there: {', '.join(taken)}"] if taken else []),
        *([f"  otherwise than there: {', '.join(other)}"] if other else []),
        *([f"  {guesses}"] if guesses else []),
    ]


def guess_line(cfg: Config, facts: ModelFacts, overrides: Collection[str] = ()) -> str:
    """The keys of which the file of a model says nothing, with their values here; empty where there are none.

    overrides: keys that the user has just set, which are told only where a guess differs.
    """
    flat = cfg.flat()
    parts = []
    for key, reason in facts.reasons.items():
        if key not in flat:
            continue
        value = "unknown" if flat[key] == "estimate" else _text(flat[key])
        guess = facts.guesses.get(key)
        if key in overrides and guess in (None, flat[key]):
            continue
        other = "" if guess is None or guess == flat[key] else f"; {_text(guess)} would be a guess"
        parts.append(f"{key} {value} ({reason}{other})")
    return f"not in the file, so check them: {', '.join(parts)}" if parts else ""


def _is_taken(key: str, facts: ModelFacts, pairs: Collection[str], init: Mapping[str, Any]) -> bool:
    """Whether INIT.take has a key of the file replaced. A section stands for its keys, but for the free ones."""
    if key in pairs or key in init["keep"]:
        return False
    return key in init["take"] or (key.partition(".")[0] in init["take"] and key not in facts.free)


def _belongs(key: str, raw: Raw, pairs: Mapping[str, Any], facts: ModelFacts) -> bool:
    """Whether the config has the encoder, or the channels, that a value of the model is for."""
    if key in STATISTICS:
        return _same_text(CHANNELS, raw, pairs, facts)
    return not key.startswith(ENCODER) or key == NAME or _same_text(NAME, raw, pairs, facts)


def _same_text(key: str, raw: Raw, pairs: Mapping[str, Any], facts: ModelFacts) -> bool:
    section, _, inner = key.partition(".")
    theirs = facts.values.get(key, facts.guesses.get(key))
    return theirs is None or pairs.get(key, raw.get(section, {}).get(inner)) == annotations.as_text(theirs)


def _keys_of_part(encoder: Raw) -> Raw:
    """The keys that a part of the name has; those of the part that was named before are left out."""
    keys = schema.part_keys("ENCODER", encoder["name"])
    return {key: value for key, value in encoder.items() if key == "name" or key in keys}


def _is_same(key: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    here, there = ours[key], theirs[key]
    if here == there:
        return True
    if key == "ENCODER.norm_eps":
        return max(here, there) <= SMALL_EPS
    if "estimate" in (here, there) or key not in (*STATISTICS, "ENCODER.mlp_ratio"):
        return False
    if key == "ENCODER.mlp_ratio":  # weights show the hidden channels, which are whole
        width = ours.get("ENCODER.width", 1)
        return int(here * width) == round(there * width)
    scale = theirs.get("DATA.std", there)
    return all(abs(one - two) <= NEAR * abs(std) for one, two, std in zip(here, there, scale, strict=True))


def _text(value: Any) -> str:
    """A value as a config file holds it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else printable(str(value))
