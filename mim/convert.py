"""Converting weights between formats, and encoders ready to use from any of them."""

from dataclasses import replace
from pathlib import Path

import torch
import yaml

from mim import build
from mim.config import Config, Overrides, parse_config, read_pairs
from mim.data.settings import DataSettings
from mim.encoders import Encoder
from mim.errors import ConfigError
from mim.interop import ModelWeights, WeightsFormat, metadata, read
from mim.interop.formats import ENCODER
from mim.interop.initialise import match_weights
from mim.interop.names import fold_names
from mim.ops.seeding import host_seeded
from mim.registry import keys_of

DECODER = "decoder"  # opens the names of weights behind the encoder, in every format that has them


def load_encoder(path: str | Path, overrides: Overrides = (), strict: bool = True) -> Encoder:
    """An encoder with its weights, on the CPU and in eval mode, that sees whole images: `encoder(img_BCHW)`.

    Args:
        path: a checkpoint or a run folder of this toolkit, a file of facebookresearch/mae, microsoft/SimMIM or timm
            (.pth, .safetensors), or a folder of transformers. Images are to be normalised as its training did.
        overrides: `KEY VALUE` pairs as of a config: what the file does not tell, or another size to which positions
            are resized: `["DATA.image_size", "[384, 384]"]`.
        strict: refuse a file whose encoder has weights that have no place here, or lacks some; features would differ.

    Raises ValueError where the file is missing, damaged, in no known format, or does not tell a key that is needed.
    """
    weights = read(build.weights_file(Path(path)), "weights")
    known = {name: weights.sections.get(name, {}) for name in ("DATA", "ENCODER")}
    data = {key: held for key, held in known["DATA"].items() if key in keys_of(DataSettings)}
    plain = {"TASK": "finetune", "DATA": data, "ENCODER": {**known["ENCODER"], "hidden": "none"}}
    unspecified = tuple(key for key in weights.unspecified if not key.startswith("HEAD."))
    cfg = config_of(replace(weights, sections=plain, unspecified=unspecified), overrides)
    with host_seeded(cfg.SEED):  # what the file lacks is the same in every call, and the caller's generators go on
        encoder = _encoder(cfg)
    placed = match_weights(encoder, weights, "weights")
    report = placed.report
    unknown = [name for name in report.unexpected if name != "mask_token" and not name.startswith(DECODER)]
    if strict and (report.missing or report.reshaped or unknown):
        found = "\n".join(report.lines()[1:])
        raise ValueError(
            f"weights {path} hold more, or less, than ENCODER.name {encoder.name} computes with, so that its features "
            f"would differ (strict=False loads what fits):\n{found}"
        )
    encoder.load_state_dict(placed.state, strict=False)
    return encoder.eval()


def convert(source: Path, target: Path, to: str, given: str = "", overrides: Overrides = ()) -> list[str]:
    """Writes the weights of a file or folder in another format; says in lines what became of each.

    given: the format to read; recognised by its keys where empty. overrides: `KEY VALUE` pairs as of a config.

    Raises ValueError where the file cannot be read or written in that format, does not tell a key that is needed, or
    holds too little of an encoder; nothing is written then.
    """
    file = build.weights_file(source)
    held = file.iterdir() if file.is_dir() else ()
    if target.resolve() in [path.resolve() for path in (source, file, *held)]:
        raise ValueError(f"OUT {target} is what is to be read: name another")
    weights = read(file, "IN", given)
    cfg = config_of(weights, overrides)
    with torch.device("meta"):
        placed = match_weights(_encoder(cfg), weights, "IN")
    others = {name: held for name, held in weights.state.items() if not name.startswith(ENCODER)}
    state = {**{ENCODER + name: held for name, held in placed.state.items()}, **others}
    complete = replace(weights, state=state, sections=yaml.safe_load(cfg.to_yaml()))
    target.parent.mkdir(parents=True, exist_ok=True)
    written = WeightsFormat.named(to)().write(complete, target)
    first, *rest = placed.report.lines()
    lines = [first, f"  loaded: {fold_names(placed.state)}", *rest]
    if others:
        lines.append(f"  and beside the encoder: {fold_names(others)}")
    lines.append(f"{target} ({to}): {len(state) - len(written.left_out)} weights written")
    if written.left_out:
        lines.append(f"  without a place there, left out: {fold_names(written.left_out)}")
    return [*lines, f"  to load: {written.use}"]


def config_of(weights: ModelWeights, overrides: Overrides) -> Config:
    """The complete config of a file's weights. Raises ValueError for keys that neither it nor the overrides give."""
    missing = [key for key in weights.unspecified if key not in read_pairs(overrides)]
    if missing:
        raise ValueError(
            f"{weights.source} does not tell {' and '.join(missing)}: name each, as in ENCODER.heads 12 or "
            'DATA.image_size "[224, 224]"'
        )
    try:
        cfg = parse_config(metadata.as_yaml(weights.sections), overrides)
        build.check(cfg)
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{weights.source}, with the overrides: {error}") from error
    return cfg


def _encoder(cfg: Config) -> Encoder:
    return cfg.ENCODER.build(build.image_spec(cfg))
