"""A Hugging Face folder: an encoder as config.json and model.safetensors, loaded by timm and transformers if they can.

Of an encoder that timm has, weights have timm's names, and config.json is timm's: `timm.create_model("hf-hub:...")` and
transformers' AutoModel (TimmWrapper) read it. Of another one both are this toolkit's own. `load_encoder` reads both.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from mim.interop import metadata
from mim.interop.files import CONFIG
from mim.interop.formats import ENCODER, ModelWeights, Sections
from mim.interop.hub import MODEL
from mim.interop.timm import Timm, model_of
from mim.interop.timm_hub import ARCHITECTURE, ARGUMENTS, PUBLISHED
from mim.io.files import write_atomically, write_json
from mim.io.weights import CHECKPOINT_FORMAT


@dataclass(frozen=True, slots=True)
class Preparation:
    """How images of the encoder's size are cut out, for timm's transforms."""

    crop_share: float = 1.0  # of the shorter side of the resized image
    interpolation: str = "bicubic"


def write_encoder(weights: ModelWeights, folder: Path, preparation: Preparation) -> str:
    """Writes an encoder's weights with their config into a folder; returns why timm cannot load it, empty where it can.

    Args:
        weights: an encoder alone, with the complete sections ENCODER and DATA.
        folder: is made where there is none.
        preparation: what config.json says of images.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        model, arguments = _of_timm(weights.sections)
        Timm().write(weights, folder / MODEL)
    except ValueError as error:
        _write_own(weights, folder)
        return str(error)
    record = metadata.metadata_of(weights, weights.state)
    write_json(folder / CONFIG, {**_timm_config(weights, model, arguments, preparation), **record})
    return ""


def _of_timm(sections: Sections) -> tuple[str, dict[str, Any]]:
    """The model of timm and its arguments as JSON has them. Raises ValueError where timm has no such model."""
    if sections["ENCODER"]["name"] not in ("timm", "vit", "beit", "swin", "swin_v2"):
        raise ValueError(f"ENCODER.name {sections['ENCODER']['name']} has no counterpart in timm")
    model, arguments = model_of(sections)
    arguments.pop("num_classes", None)
    try:
        return model, json.loads(json.dumps(arguments))
    except TypeError as error:
        raise ValueError(f"ENCODER.norm_eps {sections['ENCODER'].get('norm_eps')} cannot stand in its JSON") from error


def _timm_config(
    weights: ModelWeights, model: str, arguments: dict[str, Any], preparation: Preparation
) -> dict[str, Any]:
    """The content of timm's config.json. Without `first_conv` and `classifier` timm loads the weights as they are."""
    data = weights.sections["DATA"]
    published = {
        "custom_load": False,
        "input_size": [data["channels"], *data["image_size"]],
        "fixed_input_size": "img_size" in arguments,
        "interpolation": preparation.interpolation,
        "crop_pct": preparation.crop_share,
        "crop_mode": "center",
        "mean": list(data["mean"]),
        "std": list(data["std"]),
        "num_classes": 0,
    }
    pool = {"global_pool": arguments["global_pool"]} if "global_pool" in arguments else {}
    return {ARCHITECTURE: model, "num_classes": 0, **pool, ARGUMENTS: arguments, PUBLISHED: published}


def _write_own(weights: ModelWeights, folder: Path) -> None:
    """As a checkpoint of this toolkit in two files."""
    state = {
        name: weight.detach().clone(memory_format=torch.contiguous_format) for name, weight in weights.state.items()
    }
    sections = {name: weights.sections[name] for name in ("TASK", "PLUGINS", "DATA", "ENCODER")}
    keys = ("image_size", "channels", "mean", "std", *metadata.USUAL_PIXELS)
    sections["DATA"] = {key: sections["DATA"][key] for key in keys}
    write_json(
        folder / CONFIG,
        {"format": CHECKPOINT_FORMAT, "config": metadata.to_yaml(sections), **metadata.origin(weights)},
    )
    assert all(name.startswith(ENCODER) for name in state)
    write_atomically(folder / MODEL, lambda file: file.write(save(state, metadata={"format": "pt"})))
