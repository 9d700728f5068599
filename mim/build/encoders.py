"""Encoders with their weights, from a run or a file in any known format."""

import hashlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
import yaml

from mim import init_weights
from mim.build.configs import check
from mim.build.models import image_spec
from mim.config import Config, Overrides, inherit, parse_config, read_pairs
from mim.encoders import Encoder
from mim.errors import ConfigError
from mim.interop import ModelWeights, hub, metadata, read
from mim.interop.formats import Sections, UnknownFormat
from mim.interop.initialise import match_weights, read_for
from mim.ops.seeding import host_seeded
from mim.structures import ImageSpec
from mim.targets.base import Network

LOG = logging.getLogger("mim")
PLAIN: Sections = {"TASK": "finetune", "ENCODER": {"hidden": "none"}}  # of an encoder that overrides describe
OTHER_FILE = (  # the way out where a teacher's weights are of another model
    "name a file of exactly this model, the model of timm that it is of with TARGET.model, or the size of its images "
    "with TARGET.image_size"
)


def load_encoder(path: str | Path, overrides: Overrides = (), strict: bool = True) -> Encoder:
    """An encoder with its weights, on the CPU and in eval mode, that sees whole images: `encoder(img_BCHW)`.

    Args:
        path: a checkpoint or a run folder of this toolkit, a file of facebookresearch/mae, microsoft/SimMIM or timm
            (.pth, .safetensors), or a folder of transformers; also a file under the names of an encoder of yours, which
            the overrides describe: `{"ENCODER.name": "mine"}`; or `hf://owner/name[@revision][/file]`, weights at a
            Hugging Face hub, downloaded by huggingface_hub. Images are to be normalised as its training did.
        overrides: config keys that the file does not hold, or another size, to which positions are resized:
            `{"DATA.image_size": [384, 384]}`. Other values than the file's are an error, but for keys that INIT.keep
            names. INIT.adapt_channels adapts the first layer to another DATA.channels.
        strict: refuse a file with missing or unknown weights of the encoder, because features would differ.

    Keys that the file does not say and that were guessed are told in a warning of the logger `mim`. PLUGINS of the run
    are imported where the encoder is a part of them.

    Raises ValueError where the file is missing, damaged, in no known format, or lacks a key that is needed.
    """
    return read_encoder(Path(path), overrides, strict)[0]


def load_network(path: str, model: str, image: ImageSpec) -> Network:
    """The network of TARGET.checkpoint for images of a size; without weights on the meta device.

    Args:
        path: the file of its weights; it may be empty on the meta device, where `model` is not.
        model: a model of timm; empty where the file says what it holds.
        image: the images that it sees; tables of positions are resized for them.

    Raises ValueError where the file is missing, damaged or of another model, and where it cannot have such images.
    """
    on_meta = torch.empty(0).is_meta
    if not path and not (on_meta and model):
        raise ValueError(
            "TARGET.checkpoint is empty: name the file of the teacher's weights, with TARGET.model where it is of timm"
        )
    overrides: dict[str, Any] = {"DATA.channels": image.channels, "DATA.image_size": (image.height, image.width)}
    if model:
        overrides |= {"ENCODER.name": "timm", "ENCODER.model": model, "ENCODER.hidden": "none"}
    mean, std = _timm_statistics(model) if model else (None, None)
    try:
        if not path:
            return Network(bare_encoder(parse_config("TASK: finetune", overrides)), mean, std, "")
        _check_place(Path(path))
        _check_file(Path(path), model, image, overrides)
        if on_meta:
            encoder, cfg = _without_weights(Path(path), overrides)
        else:  # of a model that timm knows, mean and std are known
            encoder, cfg = read_encoder(Path(path), overrides, warn=mean is None, way_out=OTHER_FILE)
    except ValueError as error:
        of_size = _fault_of_size(path, model, overrides)
        way_out = ""
        if Path(path).is_file() and not of_size and OTHER_FILE not in str(error):
            there = f"TARGET.model is {model}: it must be the model of timm that the file is of"
            way_out = "\n" + (there if model else "Where this is a model of timm, name it with TARGET.model")
        raise ValueError(f"TARGET.checkpoint {path or model}: {of_size or error}{way_out}") from error
    if cfg.DATA.mean != "estimate":
        mean, std = cfg.DATA.mean, cfg.DATA.std
    return Network(encoder, mean, std, "" if on_meta else _checksum(init_weights.weights_file(Path(path))))


def _check_place(path: Path) -> None:
    """Raises ValueError where there is no file or folder, with the path that was looked for."""
    if not hub.is_hub_path(path) and not path.exists():
        folder = "" if path.is_absolute() else f" in the working folder (it would be {path.absolute()})"
        raise ValueError(
            f"{path} does not exist{folder}: set TARGET.checkpoint to where it is now, best as an absolute path. A run "
            "goes on with the same file at another place"
        )


def _fault_of_size(path: str, model: str, overrides: dict[str, Any]) -> str:
    """Why a network cannot have images of DATA.image_size, where those of its own size would do; else empty."""
    with torch.device("cpu"):
        try:
            weights = ModelWeights({}, PLAIN, model)
            if path:
                weights = _encoder_weights(init_weights.weights_file(Path(path)), overrides, lazy=True)
            size = weights.image_size or _timm_size(model)
            if size is None:
                return ""
            config_of(weights, {**overrides, "DATA.image_size": size})
        except ValueError:  # something else is wrong, too
            return ""
        try:
            config_of(weights, overrides)
        except ValueError as error:
            reason = str(error.__cause__ or error).partition(": use ")[0].replace("ENCODER.", "its ")
            height, width = overrides["DATA.image_size"]
            return (
                f"this network cannot have images of {height}x{width} px: {reason}. Set TARGET.image_size "
                f'"{list(size)}", which it was trained on, or another size that fits it'
            )
    return ""


def _check_file(path: Path, model: str, image: ImageSpec, overrides: Overrides) -> None:
    """Raises ValueError where a file says that it is not of TARGET.model, or of images with other channels."""
    with torch.device("cpu"):  # its weights cannot be read on the meta device
        weights = _encoder_weights(init_weights.weights_file(path), overrides, lazy=True)
    encoder, channels = weights.sections.get("ENCODER", {}), weights.sections.get("DATA", {}).get("channels")
    if model and weights.format == "mim" and (encoder.get("name"), encoder.get("model")) != ("timm", model):
        there = encoder.get("model") or encoder.get("name")
        raise ValueError(
            f"it is of {there}, and TARGET.model is {model}: leave TARGET.model empty, or name another file"
        )
    if channels not in (None, image.channels):
        raise ValueError(
            f"it is of images with {channels} channels, and DATA.channels is {image.channels}: name a file of images "
            "with as many channels"
        )


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
        check(_without_absent_teachers(cfg))
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{weights.source}, with the overrides: {error}") from error
    if (facts := init_weights.facts_of(weights, weights.source)) is not None:
        inherit.check(cfg, facts, read_pairs(overrides))
        cfg = inherit.resized(cfg, facts, read_pairs(overrides))
    return cfg


def _without_absent_teachers(cfg: Config) -> Config:
    """The config without the files of teachers that are not here: only the loss needs them."""
    parts = cfg.parts("TARGET") if cfg.TASK == "pretrain" else ()
    files = {part.place: part.arguments["checkpoint"] for part in parts if "checkpoint" in part.arguments}
    return cfg.replace({f"{place}.checkpoint": "" for place, file in files.items() if not Path(file).exists()})


def guess_line(cfg: Config, weights: ModelWeights, overrides: Overrides) -> str:
    """The keys of which a file of weights says nothing, with their values in a config; empty where there are none."""
    facts = init_weights.facts_of(weights, weights.source)
    return inherit.guess_line(cfg, facts, read_pairs(overrides)) if facts is not None else ""


def override_plugins(weights: ModelWeights, overrides: Overrides) -> ModelWeights:
    """The weights without the PLUGINS of their run, where the overrides say which are to be imported."""
    return replace(weights, plugins=()) if "PLUGINS" in read_pairs(overrides) else weights


def bare_encoder(cfg: Config) -> Encoder:
    """The encoder of a config, with random weights."""
    return cfg.ENCODER.build(image_spec(cfg))


def read_encoder(
    path: Path,
    overrides: Overrides,
    strict: bool = True,
    warn: bool = True,
    way_out: str = "strict=False loads what fits",
) -> tuple[Encoder, Config]:
    """See load_encoder, also for what it raises; with the config of the file.

    Args:
        path: as load_encoder takes it.
        overrides: config keys.
        strict: whether weights that are missing or left over are an error.
        warn: whether to warn of keys that were guessed.
        way_out: what a user can do where the weights are not exactly those of the encoder.
    """
    file = init_weights.weights_file(path)
    weights = _encoder_weights(file, overrides)
    cfg = config_of(weights, overrides)
    # missing weights are the same in every call, and the caller's generators stay as they are
    with host_seeded(cfg.SEED):
        encoder = bare_encoder(cfg)
    weights = weights if weights.state else read_for(encoder, file, "weights")
    state, report = match_weights(encoder, weights, "weights", cfg.INIT.adapt_channels, cfg.INIT.leave_out)
    if strict and report.faults():
        details = "\n".join(report.lines()[1:])
        raise ValueError(
            f"weights {path} are not exactly those of the encoder {encoder.title}, so its features would differ "
            f"({way_out}):\n{details}"
        )
    for line in (*report.notes, guess_line(cfg, weights, overrides) if warn else ""):
        if line:
            LOG.warning("%s: %s", path, line)
    encoder.load_state_dict(state, strict=False)
    return encoder.eval(), cfg


def _without_weights(path: Path, overrides: Overrides) -> tuple[Encoder, Config]:
    """The same on the meta device, where only shapes are read."""
    with torch.device("cpu"):
        cfg = config_of(_encoder_weights(init_weights.weights_file(path), overrides, lazy=True), overrides)
    return bare_encoder(cfg), cfg


def _encoder_weights(file: Path, overrides: Overrides, lazy: bool = False) -> ModelWeights:
    """The weights of a file with the sections of its encoder; neither where the overrides name another encoder.

    Those are then under the names of that encoder, or in a format that fits it.
    """
    name = read_pairs(overrides).get("ENCODER.name")
    try:
        weights = override_plugins(read(file, "weights", lazy=lazy), overrides)
    except UnknownFormat:
        if name is None:
            raise
        return ModelWeights({}, PLAIN, str(file))
    if name not in (None, weights.sections.get("ENCODER", {}).get("name")) and weights.format != "mim":
        return ModelWeights({}, PLAIN, str(file))
    init_weights.import_plugins(weights)
    unspecified = tuple(key for key in weights.unspecified if not key.startswith("HEAD."))
    return replace(weights, sections=init_weights.encoder_sections(weights), unspecified=unspecified)


def _timm_statistics(model: str) -> tuple[tuple[float, ...], tuple[float, ...]] | tuple[None, None]:
    """The mean and std of the images that timm's weights of a model were trained on, where timm knows the model."""
    try:
        config = timm.get_pretrained_cfg(model)
    except RuntimeError:  # the encoder says what is wrong with the name
        config = None
    return (config.mean, config.std) if config is not None else (None, None)


def _timm_size(model: str) -> tuple[int, int] | None:
    """Height and width of the images that a model of timm was made for, where timm knows the model."""
    try:
        config = timm.get_pretrained_cfg(model) if model else None
    except RuntimeError:
        return None
    return (config.input_size[-2], config.input_size[-1]) if config is not None else None


def _checksum(file: Path) -> str:
    """SHA-256 of a file in hexadecimal digits; of a folder, that of the SHA-256 of each of its files, by name."""
    if not file.is_dir():
        return _digest(file).hexdigest()
    digest = hashlib.sha256()
    for path in sorted(each for each in file.iterdir() if each.is_file()):
        digest.update(_digest(path).digest())
    return digest.hexdigest()


def _digest(file: Path) -> Any:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256")
