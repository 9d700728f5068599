"""Converting weights between formats, and encoders ready to use from any of them."""

import logging
from dataclasses import replace
from pathlib import Path

import torch
import yaml

from mim import build, init_weights
from mim.config import Config, Overrides, inherit, parse_config, read_pairs
from mim.encoders import Encoder
from mim.errors import ConfigError
from mim.interop import ModelWeights, WeightsFormat, metadata, read
from mim.interop.class_names import BIAS
from mim.interop.formats import ENCODER, UnknownFormat
from mim.interop.initialise import match_weights, read_for
from mim.interop.names import fold_names
from mim.io.formatting import list_names
from mim.ops.seeding import host_seeded

LOG = logging.getLogger("mim")


def load_encoder(path: str | Path, overrides: Overrides = (), strict: bool = True) -> Encoder:
    """An encoder with its weights, on the CPU and in eval mode, that sees whole images: `encoder(img_BCHW)`.

    Args:
        path: a checkpoint or a run folder of this toolkit, a file of facebookresearch/mae, microsoft/SimMIM or timm
            (.pth, .safetensors), or a folder of transformers; also a file under the names of an encoder of yours, which
            the overrides describe: `{"ENCODER.name": "mine"}`. Images are to be normalised as its training did.
        overrides: config keys that the file does not hold, or another size, to which positions are resized:
            `{"DATA.image_size": [384, 384]}`. Other values than the file's are an error, but for keys that INIT.keep
            names. INIT.adapt_channels adapts the first layer to another DATA.channels.
        strict: refuse a file with missing or unknown weights of the encoder, because features would differ.

    Keys that the file does not say and that were guessed are told in a warning of the logger `mim`. PLUGINS of the run
    are imported where the encoder is a part of them.

    Raises ValueError where the file is missing, damaged, in no known format, or lacks a key that is needed.
    """
    file = init_weights.weights_file(Path(path))
    weights = _encoder_weights(file, overrides)
    cfg = config_of(weights, overrides)
    with host_seeded(
        cfg.SEED
    ):  # missing weights are the same in every call, and the caller's generators stay as they are
        encoder = _encoder(cfg)
    weights = weights if weights.state else read_for(encoder, file, "weights")
    state, report = match_weights(encoder, weights, "weights", cfg.INIT.adapt_channels, cfg.INIT.leave_out)
    if strict and report.faults():
        details = "\n".join(report.lines()[1:])
        raise ValueError(
            f"weights {path} are not exactly those of ENCODER.name {encoder.name}, so its features would differ "
            f"(strict=False loads what fits):\n{details}"
        )
    for line in (*report.notes, guess_line(cfg, weights, overrides)):
        if line:
            LOG.warning("%s: %s", path, line)
    encoder.load_state_dict(state, strict=False)
    return encoder.eval()


def convert(source: Path, target: Path, to: str, source_format: str = "", overrides: Overrides = ()) -> list[str]:
    """Writes the weights of a file or folder in another format, and returns a report in lines.

    Args:
        source: the file or folder to read.
        target: the file or folder to write.
        to: the name of the format to write.
        source_format: the name of the format to read; empty recognises it.
        overrides: config keys that the source does not hold.

    Raises ValueError where the source cannot be read, cannot be written in that format, lacks a key that is needed, or
    holds too little of an encoder. Nothing is written then.
    """
    file = init_weights.weights_file(source)
    files = file.iterdir() if file.is_dir() else ()
    if target.resolve() in [path.resolve() for path in (source, file, *files)]:
        raise ValueError(f"OUT {target} is also the input: name another file")
    WeightsFormat.named(to)().check_target(target)
    weights = _trusted(read(file, "IN", source_format), overrides)
    plugins = init_weights.import_plugins(weights, tuple(weights.sections))
    cfg = config_of(replace(weights, sections={**weights.sections, "PLUGINS": list(plugins)}), overrides)
    with torch.device("meta"):
        matched, report = match_weights(_encoder(cfg), weights, "IN")
    others = {name: weight for name, weight in weights.state.items() if not name.startswith(ENCODER)}
    state = {**{ENCODER + name: weight for name, weight in matched.items()}, **others}
    complete = replace(weights, state=state, sections=yaml.safe_load(cfg.to_yaml()))
    target.parent.mkdir(parents=True, exist_ok=True)
    written = WeightsFormat.named(to)().write(complete, target)
    first, *rest = report.lines()
    lines = [first, f"  loaded: {fold_names(matched)}", *rest]
    if guesses := guess_line(cfg, weights, overrides):
        lines.append(f"  {guesses}")
    if others:
        lines.append(f"  and after the encoder: {fold_names(others)}")
    if BIAS in others:
        named = list_names(weights.classes) if weights.classes else "no names in the file, so they are numbered"
        lines.append(f"  {len(others[BIAS]):,} classes: {named}")
    lines.append(f"{target} ({to}): {len(state) - len(written.left_out)} weights written")
    if written.left_out:
        lines.append(f"  unknown to that format, left out: {fold_names(written.left_out)}")
    return [*lines, f"  to load: {written.usage}"]


def config_of(weights: ModelWeights, overrides: Overrides) -> Config:
    """The complete config of a file's weights.

    Raises ValueError for keys that neither it nor the overrides give, and for overrides with which the weights compute
    something else.
    """
    missing = [key for key in weights.unspecified if key not in read_pairs(overrides)]
    if missing:
        raise ValueError(
            f"{weights.source} does not hold {' and '.join(missing)}: give each, as in ENCODER.heads 12 or "
            'DATA.image_size "[224, 224]"'
        )
    try:
        cfg = parse_config(metadata.to_yaml(weights.sections), overrides)
        build.check(cfg)
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{weights.source}, with the overrides: {error}") from error
    if (facts := init_weights.facts_of(weights, weights.source)) is not None:
        inherit.check(cfg, facts, read_pairs(overrides))
        cfg = inherit.resized(cfg, facts, read_pairs(overrides))
    return cfg


def guess_line(cfg: Config, weights: ModelWeights, overrides: Overrides) -> str:
    """The keys of which a file of weights says nothing, with their values in a config; empty where there are none."""
    facts = init_weights.facts_of(weights, weights.source)
    return inherit.guess_line(cfg, facts, read_pairs(overrides)) if facts is not None else ""


def _trusted(weights: ModelWeights, overrides: Overrides) -> ModelWeights:
    """The weights without the PLUGINS of their run, where the overrides say which are to be imported."""
    return replace(weights, plugins=()) if "PLUGINS" in read_pairs(overrides) else weights


def _encoder_weights(file: Path, overrides: Overrides) -> ModelWeights:
    """The weights of a file with the sections of its encoder; neither where the overrides name another encoder.

    Those are then under the names of that encoder, or in a format that fits it.
    """
    name = read_pairs(overrides).get("ENCODER.name")
    try:
        weights = _trusted(read(file, "weights"), overrides)
    except UnknownFormat:
        if name is None:
            raise
        return ModelWeights({}, {"TASK": "finetune", "ENCODER": {"hidden": "none"}}, str(file))
    if name not in (None, weights.sections.get("ENCODER", {}).get("name")) and weights.format != "mim":
        return ModelWeights({}, {"TASK": "finetune", "ENCODER": {"hidden": "none"}}, str(file))
    init_weights.import_plugins(weights)
    unspecified = tuple(key for key in weights.unspecified if not key.startswith("HEAD."))
    return replace(weights, sections=init_weights.encoder_sections(weights), unspecified=unspecified)


def _encoder(cfg: Config) -> Encoder:
    return cfg.ENCODER.build(build.image_spec(cfg))
