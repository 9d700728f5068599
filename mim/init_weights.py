"""The weights that a run starts from, INIT.checkpoint, and what is known of the model that they belong to."""

from dataclasses import replace
from pathlib import Path

from mim import interop
from mim.config import Config, Overrides, catalogue, inherit, parse_config, plugins, read_pairs, schema
from mim.config.inherit import OF_THE_DATA, SIZE, FindFacts, ModelFacts
from mim.data.settings import DataSettings
from mim.encoders import Encoder, Timm
from mim.engine import checkpoint
from mim.engine.run_folder import RunFolder
from mim.errors import ConfigError
from mim.interop import ModelWeights, hub, metadata, read
from mim.interop.files import is_pretrained_folder
from mim.interop.formats import UnknownFormat
from mim.interop.initialise import initialise_encoder, read_for
from mim.interop.initialise_model import anew_line, initialise_model
from mim.io.sections import all_places
from mim.io.weights import read_weights
from mim.model import MaskedImageModel
from mim.readouts import Predictor
from mim.registry import keys_of
from mim.tasks.pretrain import Pretrain
from mim.tasks.supervised import Supervised

OF_THE_RUN = tuple(f"ENCODER.{key}" for key in Encoder.free_keys)  # what they should be depends on the task


def initialise(cfg: Config, task: Pretrain | Supervised) -> list[str]:
    """Loads INIT.checkpoint, or the published weights that the encoder asks for, and returns a report in lines."""
    lines = _initialise(cfg, task)
    if isinstance(task.model, MaskedImageModel) and cfg.INIT.parts == "encoder":
        task.model.target.start(task.model.encoder)
    return lines


def _initialise(cfg: Config, task: Pretrain | Supervised) -> list[str]:
    file = init_file(cfg)
    if file is None:
        return task.model.encoder.load_published()
    model, init = task.model, cfg.INIT
    if init.parts == "model":
        assert isinstance(model, MaskedImageModel)
        weights = read_for(model.encoder, file, "INIT.checkpoint")
        return [*initialise_model(model, weights, cfg.values(), init.keep), *cfg.notes]
    is_frozen = model.is_frozen if isinstance(model, Predictor) else lambda name: False
    report = initialise_encoder(model.encoder, file, is_frozen, init.adapt_channels, init.leave_out)
    return [*report.lines(), anew_line(model, report.behind), *cfg.notes]


def init_file(cfg: Config) -> Path | None:
    """The file of weights that INIT.checkpoint names; None where it is empty. Raises ValueError where there is none."""
    if not cfg.INIT.checkpoint:
        return None
    try:
        return weights_file(Path(cfg.INIT.checkpoint))
    except ValueError as error:
        raise ValueError(f"INIT.checkpoint {error}") from error


def weights_file(path: Path) -> Path:
    """The file of weights at a path: of a run folder its best checkpoint, or its last; else the path itself.

    What is at a hub (`hf://owner/name`) is downloaded. Raises ValueError where there is none.
    """
    if hub.is_hub_path(path):
        return hub.fetch(path)
    return path if is_pretrained_folder(path) else checkpoint.find(path)


def find_facts(initial: str) -> ModelFacts | None:
    """What is known of the model of INIT.checkpoint; None where it is empty or missing, or in no known format.

    Weights are not read. Raises ValueError where the file is damaged, and where its encoder is a part of a plugin that
    cannot be imported.
    """
    if not initial:
        return None
    try:
        file = weights_file(Path(initial))
    except ValueError:  # it is told when the run starts: one that is resumed needs it no more
        return None
    try:
        return facts_of(read(file, "INIT.checkpoint", lazy=True), f"INIT.checkpoint {file}")
    except UnknownFormat:  # a state dict under the names of the encoder itself
        return None


def find_facts_in(output: Path, resume: str | Path | None) -> FindFacts:
    """find_facts for a run in a folder: one that is resumed has the values that it began with."""

    def find(initial: str) -> ModelFacts | None:
        began = _config_of(RunFolder(output), Path(resume) if resume is not None else None) if initial else None
        return find_facts(initial) if began is None else replace(facts_of_config(began, str(output)), binding=False)

    return find


def _config_of(folder: RunFolder, resume: Path | None) -> Config | None:
    """The config of the run that is resumed, if any; None where it cannot be read, which the run will tell."""
    try:
        if resume is not None:
            return parse_config(read_weights(resume, "checkpoint", lazy=True)["config"])
        resumed = checkpoint.last(folder.checkpoints) is not None
        return parse_config(folder.config.read_text(encoding="utf-8")) if resumed else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def facts_of(weights: ModelWeights, source: str) -> ModelFacts | None:
    """What a file of weights says or shows of its encoder and images; None where it says nothing."""
    sections = encoder_sections(weights)
    if not sections["ENCODER"]:
        return None
    modules = import_plugins(weights)
    cfg = parse_config(metadata.to_yaml(sections))
    facts = _facts(cfg, source)
    guesses = {key: value for key, value in facts.values.items() if key in weights.guesses}
    untold = dict.fromkeys(weights.unspecified, "nothing shows it")  # keys of HEAD are in no config of an encoder
    return replace(
        facts,
        values={key: value for key, value in facts.values.items() if key not in guesses},
        guesses=guesses,
        reasons={**weights.guesses, **untold},
        plugins=modules,
        subclasses=weights.format != "mim",
        also=(Timm.name,) if weights.format == interop.Timm.name else (),
    )


def config_of_checkpoint(text: str, overrides: Overrides, source: str) -> Config:
    """The config that a checkpoint of this toolkit holds, with overrides.

    Raises ConfigError for overrides with which its weights compute something else.
    """
    cfg, pairs = parse_config(text, overrides), read_pairs(overrides)
    if pairs:
        trusted = {key: value for key, value in pairs.items() if key == "PLUGINS"}  # of what may be imported, not more
        facts = facts_of_config(parse_config(text, trusted), source)
        inherit.check(cfg, facts, pairs)
        cfg = inherit.resized(cfg, facts, pairs)
    return cfg


def facts_of_config(cfg: Config, source: str) -> ModelFacts:
    """What a config says of its encoder and images, for a run that starts from its weights, or for their evaluation."""
    modules = cfg.PLUGINS if cfg.ENCODER.name not in catalogue.names(schema.FAMILIES["ENCODER"].module) else ()
    return replace(_facts(cfg, source), plugins=modules)


def encoder_sections(weights: ModelWeights) -> metadata.Sections:
    """The sections of a file of weights that its encoder needs, for whole images."""
    data, encoder = (weights.sections.get(name, {}) for name in ("DATA", "ENCODER"))
    data = {key: value for key, value in data.items() if key in keys_of(DataSettings) and key != "masks"}
    encoder = {**encoder, "hidden": "none"} if encoder else {}
    return {"TASK": "finetune", "DATA": data, "ENCODER": encoder}


def import_plugins(weights: ModelWeights, sections: tuple[str, ...] = ("ENCODER",)) -> tuple[str, ...]:
    """Imports the PLUGINS of a checkpoint where a part of these sections is none of this toolkit; returns their names.

    Raises ConfigError, with what to import, where a part is then still unknown.
    """
    parts = _part_names(weights, sections)
    if all(name in catalogue.names(schema.FAMILIES[section].module) for section, name in parts):
        return ()
    reasons, modules = [], []
    for module in weights.plugins:
        try:
            plugins.import_named(module)
            modules.append(module)
        except ConfigError as error:
            reasons.append(str(error))
    if unknown := [f"{section}.name {name}" for section, name in parts if name not in schema.part_names(section)]:
        names = ", ".join(weights.plugins) or "which it does not name"
        why = f": {'; '.join(reasons)}" if reasons else ""
        raise ConfigError(
            f"{weights.source}: {', '.join(unknown)} is no part of this toolkit. It comes from the PLUGINS of that run "
            f"({names}){why}. Import the module with it before, or set PLUGINS"
        )
    return tuple(modules)


def _part_names(weights: ModelWeights, sections: tuple[str, ...]) -> list[tuple[str, str]]:
    """These sections, each with the name of its part, or of each of its parts, where the file says it."""
    contents = all_places({key: weights.sections.get(key) for key in sections if key in schema.FAMILIES})
    return [
        (place.partition(".")[0], str(keys["name"]))
        for place, keys in contents.items()
        if isinstance(keys, dict) and "name" in keys
    ]


def _facts(cfg: Config, source: str) -> ModelFacts:
    flat = cfg.flat()
    keys = [key for key in flat if key.startswith("ENCODER.") or key in OF_THE_DATA]
    keys = [key for key in keys if cfg.set_keys is None or key in cfg.set_keys]
    encoder = Encoder.named(cfg.ENCODER.name)
    keys_of_size = (SIZE, *(f"ENCODER.{key}" for key in encoder.resizable_keys))
    is_known = set(keys_of_size) <= set(keys)
    others = encoder.keys_at_another_size(cfg.ENCODER.values(), flat[SIZE]) if is_known else {}
    return ModelFacts(
        source,
        {key: flat[key] for key in keys if key not in OF_THE_RUN and flat[key] != "estimate"},
        free=frozenset(f"ENCODER.{key}" for key in encoder.free_keys),
        resizable=frozenset(keys_of_size),
        at_another_size={f"ENCODER.{key}": value for key, value in others.items()},
    )
