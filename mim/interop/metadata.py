"""Config sections of a file's model: from its metadata, from its weights, or from the published model."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from mim.encoders import Encoder
from mim.interop import class_names
from mim.interop.formats import BACKBONE, ENCODER, ModelWeights, Sections
from mim.io.formatting import printable, short_repr
from mim.io.limits import LARGEST
from mim.io.migrate import rename
from mim.io.sections import flatten, is_list
from mim.io.yaml import read_values

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
PUBLISHED_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}  # attention heads of a ViT, by its width
METADATA_KEY = "mim_config"  # holds, as YAML, what converted weights do not show
PRETRAINING = ("MASKER", "ENCODER", "HEAD", "TARGET", "LOSS", "DATA")
CLASSIFICATION = ("ENCODER", "READOUT", "DATA", "EVALUATE")
LISTS = ("DATA.image_size", "ENCODER.depths")
POSITIVE = (*LISTS, "DATA.channels", "ENCODER.patch", "ENCODER.window")  # keys of integers above 0
USUAL_PIXELS = {"channels_from": "all", "pages": "channels", "scale": "type"}  # keys of DATA, written where they differ
CROP = {"EVALUATE": {"crop_pct": 224 / 256}}  # of the published evaluations of classifiers


def metadata_of(weights: ModelWeights, names: Iterable[str]) -> dict[str, str]:
    """The metadata to write with the weights of these names: their origin, and what they do not show of their model."""
    modules = {name.partition(".")[0] for name in names}
    kept = PRETRAINING if "head" in modules else ("MASKER", "ENCODER", "DATA")
    sections = {name: keys for name, keys in weights.sections.items() if name in kept}
    data, encoder = sections["DATA"], sections["ENCODER"]
    sections["DATA"] = {key: data[key] for key in ("image_size", "channels", "mean", "std") if key in data}
    sections["DATA"] |= {key: data[key] for key, usual in USUAL_PIXELS.items() if data.get(key, usual) != usual}
    sections["ENCODER"] = {key: value for key, value in encoder.items() if key != "hidden"}
    readout = weights.sections.get("READOUT", {})
    if "readouts" in modules and weights.sections["TASK"] == "finetune":
        sections["READOUT"] = {key: readout[key] for key in ("name", "pool", "norm") if key in readout}
    named = "readouts" in modules and weights.classes
    classes = {class_names.KEY: json.dumps(weights.classes)} if named else {}
    return {**origin(weights), METADATA_KEY: to_yaml(sections), **classes}


def origin(weights: ModelWeights) -> dict[str, str]:
    """The metadata that says which file was converted."""
    return {"converted_from": f"{Path(weights.source).name} ({weights.format})"}


def read_metadata(metadata: dict[str, Any]) -> Sections:
    """The sections that `metadata_of` wrote; empty where it wrote none. Raises ValueError for an impossible value."""
    sections = parse_sections(metadata.get(METADATA_KEY))
    for key, value in flatten(sections).items():
        if "." in key and not _is_possible(key, value):
            raise ValueError(f"{METADATA_KEY} has an impossible value: {printable(key)} {short_repr(value)}")
    return sections


def _is_possible(key: str, value: Any) -> bool:
    """Whether a key can have a value: a text, a number within its limits, or a list of them."""
    items = value if isinstance(value, list) else [value]
    if key in POSITIVE:
        integers = all(type(item) is int and item > 0 for item in items)
        if not integers or isinstance(value, list) != (key in LISTS):
            return False
    most = LARGEST.get(key.rpartition(".")[2])
    if most is not None and not all(isinstance(item, int | float) and 0 <= item <= most for item in items):
        return False
    return (key != "DATA.image_size" or len(items) == 2) and all(isinstance(item, str | int | float) for item in items)


def to_yaml(sections: Sections) -> str:
    """Sections as the text of a config."""
    return yaml.safe_dump(sections, sort_keys=False, default_flow_style=None)


def parse_sections(text: Any) -> Sections:
    """The sections of a config text; empty where `text` is none. PLUGINS are left out: see `parse_plugins`."""
    try:
        content = read_values(text) if isinstance(text, str) else {}
    except ValueError:  # something else has this key
        return {}
    sections = rename(content) if isinstance(content, dict) else {}
    return {
        name: keys
        for name, keys in sections.items()
        if (isinstance(keys, dict) or is_list(name, keys)) != (name in ("TASK", "SEED"))
    }


def parse_plugins(text: Any) -> tuple[str, ...]:
    """The Python modules that a config text names under PLUGINS."""
    try:
        content = read_values(text) if isinstance(text, str) else {}
    except ValueError:
        return ()
    names = content.get("PLUGINS") if isinstance(content, dict) else ()
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


def merge(*layers: Sections) -> Sections:
    """Sections merged key by key; later ones override earlier ones."""
    merged: Sections = {}
    for sections in layers:
        for name, keys in sections.items():
            before = merged.get(name)
            merged[name] = {**before, **keys} if isinstance(keys, dict) and isinstance(before, dict) else keys
    return merged


def infer_sections(
    encoder: str, state: dict[str, Tensor], facts: Sections, guessed: Mapping[str, str] | None = None
) -> tuple[Sections, tuple[str, ...], dict[str, str]]:
    """The sections of weights under our names, the keys of ENCODER and DATA that nothing specifies, and the guesses.

    Args:
        facts: TASK, and what the metadata specifies, which overrides what the weights show.
        guessed: keys in `facts` that were guessed, and why.

    Returns as guesses, by key, why each was guessed: those of `guessed`, and those that neither `facts` nor a weight
    specifies.
    """
    weights = {name.removeprefix(ENCODER): weight for name, weight in state.items() if name.startswith(ENCODER)}
    config = Encoder.named(encoder).infer_config(weights)
    data: Sections = {**IMAGENET} if config.channels == 3 else {}
    data |= {} if config.channels is None else {"channels": config.channels}
    data |= {} if config.image_size is None else {"image_size": list(config.image_size)}
    task = facts["TASK"]
    sections = merge({"TASK": task, "ENCODER": {"name": encoder, **config.keys}, "DATA": data}, facts)
    names = ("TASK", *(PRETRAINING if task == "pretrain" else CLASSIFICATION))
    sections = {name: keys for name, keys in sections.items() if name in names}
    unspecified = [f"ENCODER.{key}" for key in config.unspecified if key not in sections["ENCODER"]]
    data_facts, guesses = facts.get("DATA", {}), dict(guessed or {})
    if "mean" not in data_facts or "std" not in data_facts:
        why = "ImageNet's" if config.channels == 3 else "nothing shows it"
        guesses |= {f"DATA.{key}": why for key in ("mean", "std") if key not in data_facts}
    if config.image_size is not None and "image_size" not in data_facts:
        guesses["DATA.image_size"] = "its positions, if images are square"
    unspecified += [] if "image_size" in sections["DATA"] else ["DATA.image_size"]
    return sections, tuple(unspecified), guesses


def without_recorded(guesses: Mapping[str, str], *records: Sections) -> dict[str, str]:
    """The guesses, but for the keys that one of these sections specifies."""
    specified = {key for sections in records for key in flatten(sections)}
    return {key: why for key, why in guesses.items() if key not in specified}


def classification_sections(state: dict[str, Tensor]) -> Sections:
    """TASK, ENCODER.hidden and READOUT of an encoder that sees whole images, with or without a linear layer."""
    if "readouts.0.norm.running_mean" in state:
        return {"TASK": "probe", "ENCODER": {"hidden": "none"}}
    has_norm = "readouts.0.norm.weight" in state
    pool = "mean" if has_norm or f"{BACKBONE}cls_token" not in state else "class"
    readout = {"name": "linear", "pool": pool, "norm": "layer" if has_norm else "none"}
    return {"TASK": "finetune", "ENCODER": {"hidden": "none"}, "READOUT": readout}


def published_heads(state: dict[str, Tensor]) -> tuple[Sections, dict[str, str]]:
    """ENCODER.heads of the published ViT of this width, and why it was guessed; empty where there is none."""
    width = len(state.get(f"{BACKBONE}norm.weight", state.get(f"{BACKBONE}patch_embed.proj.bias", ())))
    projection = state.get(f"{BACKBONE}blocks.0.attn.proj.weight")
    if projection is not None and len(projection) == width != projection.shape[-1]:  # heads of a width of their own
        return {}, {}
    heads = PUBLISHED_HEADS.get(width)
    reason = f"the published ViT of width {width} has {heads} heads"
    return ({"heads": heads}, {"ENCODER.heads": reason}) if heads else ({}, {})
