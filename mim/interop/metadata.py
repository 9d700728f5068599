"""Telling: what a file of weights says of the model they are of, as sections of a config.

Some of it the weights tell themselves; the rest stands beside them, or is that of the published model.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from mim.encoders import Encoder
from mim.interop.formats import ENCODER, ModelWeights, Sections
from mim.io.formatting import printable, short_repr
from mim.io.limits import LARGEST
from mim.io.yaml import read_values

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
PUBLISHED_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}  # of a ViT, by its width
METADATA_KEY = "mim_config"  # what the weights of a file that was converted do not tell, as YAML
PRETRAINED = ("MASKER", "ENCODER", "HEAD", "TARGET", "LOSS", "DATA")
CLASSIFYING = ("ENCODER", "CLASSIFIER", "DATA", "EVALUATE")
LISTS = ("DATA.image_size", "ENCODER.depths")
WHOLE = (*LISTS, "DATA.channels", "ENCODER.patch", "ENCODER.window")  # keys whose numbers are integers above 0
CROP = {"EVALUATE": {"crop_pct": 224 / 256}}  # what the published classifiers are judged on


def record(weights: ModelWeights, taken: Iterable[str]) -> dict[str, str]:
    """What goes beside converted weights: their source, and what they do not tell of their model.

    taken: names of those that the file holds; nothing is told of a head or a classifier that it lacks.
    """
    tops = {name.partition(".")[0] for name in taken}
    names = PRETRAINED if "head" in tops else ("MASKER", "ENCODER", "DATA")
    kept = {name: held for name, held in weights.sections.items() if name in names}
    data, encoder = kept["DATA"], kept["ENCODER"]
    kept["DATA"] = {key: data[key] for key in ("image_size", "channels", "mean", "std") if key in data}
    kept["ENCODER"] = {key: held for key, held in encoder.items() if key != "hidden"}
    if "heads" in tops and weights.sections["TASK"] == "finetune":
        kept["CLASSIFIER"] = {key: weights.sections["CLASSIFIER"][key] for key in ("pool", "norm")}
    return {**origin(weights), METADATA_KEY: as_yaml(kept)}


def origin(weights: ModelWeights) -> dict[str, str]:
    """Where converted weights come from, as every format records it."""
    return {"converted_from": f"{Path(weights.source).name} ({weights.format})"}


def recorded(beside: dict[str, Any]) -> Sections:
    """What `record` left in a file; empty where it left nothing. Raises ValueError where it is not what it leaves."""
    sections = sections_of(beside.get(METADATA_KEY))
    for section, keys in sections.items():
        for key, value in keys.items() if isinstance(keys, dict) else ():
            if not _is_plain(f"{section}.{key}", value):
                raise ValueError(
                    f"{METADATA_KEY} says {printable(f'{section}.{key}')} {short_repr(value)}, which cannot be"
                )
    return sections


def _is_plain(key: str, value: Any) -> bool:
    """Whether a value can be that of a key: a number in its range, a text, or a list of such."""
    items = value if isinstance(value, list) else [value]
    if key in WHOLE and not all(type(item) is int and item > 0 for item in items):
        return False
    most = LARGEST.get(key.partition(".")[2])
    if most is not None and not all(isinstance(item, int | float) and 0 <= item <= most for item in items):
        return False
    listed = isinstance(value, list) == (key in LISTS) if key in WHOLE else True
    return (
        listed
        and (key != "DATA.image_size" or len(items) == 2)
        and all(isinstance(i, str | int | float) for i in items)
    )


def as_yaml(sections: Sections) -> str:
    """Sections as the text of a config."""
    return yaml.safe_dump(sections, sort_keys=False, default_flow_style=None)


def sections_of(text: Any) -> Sections:
    """The sections of a config that stood in a file; empty where it is none. PLUGINS are left out: a file of weights
    runs nothing.
    """
    try:
        found = read_values(text) if isinstance(text, str) else {}
    except ValueError:  # whatever else the file holds there
        return {}
    held = found if isinstance(found, dict) else {}
    return {name: keys for name, keys in held.items() if isinstance(keys, dict) != (name in ("TASK", "SEED"))}


def merged(*known: Sections) -> Sections:
    """Sections key by key, the later over the earlier."""
    found: Sections = {}
    for sections in known:
        for name, held in sections.items():
            before = found.get(name)
            found[name] = {**before, **held} if isinstance(held, dict) and isinstance(before, dict) else held
    return found


def described(encoder: str, state: dict[str, Tensor], known: Sections) -> tuple[Sections, tuple[str, ...]]:
    """The sections of a file of weights, and which keys of ENCODER and DATA nothing tells.

    state: a model's, under our names; known: TASK, and what a file says beside the weights, which goes over what they
    tell.
    """
    weights = {name.removeprefix(ENCODER): held for name, held in state.items() if name.startswith(ENCODER)}
    told = Encoder.named(encoder).infer_config(weights)
    data: Sections = dict(IMAGENET) if told.channels == 3 else {}
    if told.channels is not None:
        data["channels"] = told.channels
    if told.image_size is not None:
        data["image_size"] = list(told.image_size)
    task = known["TASK"]
    sections = merged({"TASK": task, "ENCODER": {"name": encoder, **told.keys}, "DATA": data}, known)
    of_task = ("TASK", *(PRETRAINED if task == "pretrain" else CLASSIFYING))
    sections = {name: held for name, held in sections.items() if name in of_task}
    unspecified = [f"ENCODER.{key}" for key in told.unspecified if key not in sections["ENCODER"]]
    return sections, (*unspecified, *(() if "image_size" in sections["DATA"] else ("DATA.image_size",)))


def classifying(state: dict[str, Tensor]) -> Sections:
    """TASK, ENCODER.hidden and CLASSIFIER of an encoder that sees whole images, with or without a linear layer."""
    if "norm.running_mean" in state:
        return {"TASK": "linear_probe", "ENCODER": {"hidden": "none"}}
    mean = "norm.weight" in state or f"{ENCODER}backbone.cls_token" not in state
    pooled = {"pool": "mean" if mean else "class", "norm": "norm.weight" in state}
    return {"TASK": "finetune", "ENCODER": {"hidden": "none"}, "CLASSIFIER": pooled}


def published_heads(state: dict[str, Tensor]) -> tuple[Sections, tuple[str, ...]]:
    """The number of heads that the published ViT of this width has, as ENCODER keys, and a note that says so."""
    token = state.get(f"{ENCODER}backbone.norm.weight", state.get(f"{ENCODER}backbone.patch_embed.proj.bias"))
    heads = PUBLISHED_HEADS.get(len(token)) if token is not None else None
    if token is None or heads is None:
        return {}, ()
    return {"heads": heads}, (
        f"ENCODER.heads {heads}: not in the file; the published ViT {len(token)} wide has as many",
    )
