"""Exporting the encoder or the predictor of a checkpoint as a program that needs none of this toolkit."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mim import init_weights
from mim.build.encoders import read_encoder
from mim.config import Config, Overrides
from mim.criteria.numbers import NumberCriterion
from mim.data.preprocess import Preprocess
from mim.encoders import Encoder
from mim.evaluate.loading import load
from mim.evaluate.predictor import load_predictor
from mim.interop import export as programs
from mim.interop import read
from mim.interop.class_names import KEY
from mim.io.weights import LABEL_KIND
from mim.readouts import Predictor

Normalisation = Literal["inside", "outside"]
READOUTS = "readouts."  # the prefix of their weights


@dataclass(frozen=True, slots=True)
class _Source:
    """A model to export, on the CPU and in eval mode, with its config and what the file says of its scores."""

    model: Encoder | Predictor
    cfg: Config
    metadata: dict[str, str]


def export(
    source: Path,
    target: Path,
    features: Sequence[str] = (),
    normalisation: Normalisation = "inside",
    setting: str | None = None,
    overrides: Overrides = (),
) -> list[str]:
    """Writes a model as a program for batches of any size, compared with the model first; returns a report in lines.

    Args:
        source: a run folder or checkpoint, or any file that load_encoder takes.
        target: the file to write, .onnx or .pt2.
        features: names of features of the encoder, see mim.interop.export.Program; none for the scores of a
            fine-tuning or probe, and for all features of another source.
        normalisation: whether mean and std of the run are a part of the program, which then takes values from 0 to 1,
            or images come normalised.
        setting: the title of one setting of a probe, such as `rate 3`; by default the one that its run chose.
        overrides: config keys that the source does not hold, or another DATA.image_size.

    Raises ValueError where the source cannot be read or has no such features, mean and std are not known, the file
    cannot hold the model or its package is missing, and where the program answers otherwise. Nothing is then written.
    """
    programs.check_file(target)
    loaded = _load(source, features, setting, overrides)
    data = loaded.cfg.DATA
    metadata = {"mim_source": source.resolve().name, "mim_normalisation": normalisation, **loaded.metadata}
    if data.mean != "estimate":
        metadata |= {"mim_mean": json.dumps(data.mean), "mim_std": json.dumps(data.std)}
    elif normalisation == "inside":
        raise ValueError(
            f"{source} does not say how its images were normalised: name DATA.mean and DATA.std, or use "
            "--normalisation outside"
        )
    preprocess = Preprocess(data.mean, data.std) if normalisation == "inside" else None
    program = programs.Program(loaded.model, features, preprocess)
    comparison = programs.write_program(program, target, metadata)
    return [f"{source}: {program.title}", *_lines(program, comparison, loaded.cfg), _size_line(target)]


def _lines(program: programs.Program, comparison: programs.Comparison, cfg: Config) -> list[str]:
    """What goes in, what comes out, and how the two compare."""
    image, data, comes = program.image, cfg.DATA, "normalised before, as in training"
    if program.preprocess is not None:
        comes = f"values from 0 to 1, normalised inside with mean {_listed(data.mean)} and std {_listed(data.std)}"
    shapes = (f"{name} ({', '.join(map(str, ('batch', *shape)))})" for name, shape in comparison.shapes.items())
    batches = ", ".join(map(str, programs.BATCHES))
    return [
        f"  images (batch, {image.channels}, {image.height}, {image.width}) float32: {comes}",
        f"  to {', '.join(shapes)}",
        f"  in {comparison.runner}, at batches of {batches}: largest difference {comparison.difference:.1e} of the "
        f"largest value ({programs.TOLERANCE:.0e} is allowed)",
    ]


def _size_line(target: Path) -> str:
    return f"wrote {target} ({programs.kind_of(target)}, {target.stat().st_size / 2**20:.1f} MiB)"


def _load(source: Path, features: Sequence[str], setting: str | None, overrides: Overrides) -> _Source:
    """The predictor where the source has one and no features are asked for; else the encoder."""
    weights = read(init_weights.weights_file(source), "weights", lazy=True)
    if not features and any(name.startswith(READOUTS) for name in weights.state):
        if weights.format == "mim":
            return _load_predictor(source, setting, overrides)
        raise ValueError(
            f"{source} holds a classifier in the format {weights.format}: convert it first with mim-convert --to mim, "
            "or name --features, which leave it out"
        )
    if setting is not None:
        raise ValueError(f"--setting is {setting!r}, and only scores of a probe have settings: leave it out")
    encoder, cfg = read_encoder(source, overrides)
    return _Source(encoder, cfg, {})


def _load_predictor(source: Path, setting: str | None, overrides: Overrides) -> _Source:
    """The predictor of a checkpoint with the readout of one setting alone."""
    with load(source, overrides) as loaded:
        predictor = load_predictor(loaded, setting)
        chosen = predictor.require_chosen(loaded.path)
        criterion = predictor.model.criterion
        metadata = {f"mim_{LABEL_KIND}": str(predictor.spec.kind), "mim_criterion": criterion.name}
        if isinstance(criterion, NumberCriterion):  # scores are in standard deviations
            moments = {"mim_label_mean": criterion.mean_K, "mim_label_std": criterion.std_K}
            metadata |= {name: json.dumps(values_K.tolist()) for name, values_K in moments.items()}
        if predictor.is_named:
            metadata[KEY] = json.dumps(predictor.spec.names)
        metadata |= {f"mim_{key}": value for key, value in predictor.describe(chosen).items()}
        model = predictor.model
        one = Predictor(model.encoder, [model.readouts[chosen]], criterion)
        return _Source(one.cpu().eval(), loaded.cfg, metadata)


def _listed(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:.4g}' for value in values)}]"
