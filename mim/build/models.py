"""From a config to its model, with or without weights.

Shapes are checked here: parts that do not fit each other raise ValueError.
"""

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from mim.config import Config
from mim.config.parts import named_by_place
from mim.cost.model_summary import ModelSummary, summarise_model
from mim.criteria import Criterion, TrainingLabels
from mim.data.preprocess import Preprocess
from mim.encoders import Encoder
from mim.engine import checkpoint
from mim.losses import Loss
from mim.model import MaskedImageModel
from mim.ops.attention import choose_attention
from mim.ops.initial import Undrawn
from mim.ops.seeding import derive_seed
from mim.readouts import Predictor, Readout
from mim.structures import ImageSpec, LabelSpec
from mim.targets import Target
from mim.targets.base import TargetContext
from mim.targets.several import Several, SeveralLosses
from mim.tasks.probe import ProbeSetting

Model = MaskedImageModel | Predictor


def image_spec(cfg: Config) -> ImageSpec:
    """The images that a config's encoder is built for."""
    return ImageSpec(cfg.DATA.channels, *cfg.DATA.image_size)


def build_model(cfg: Config) -> MaskedImageModel:
    """Masker, encoder, head, target and loss of a pretraining config, with weights drawn from its SEED.

    Raises ValueError where two parts do not fit each other, naming the way out.
    """
    if cfg.TASK != "pretrain":
        raise ValueError(f"TASK is {cfg.TASK}: it has a readout, see build_predictor")
    image = image_spec(cfg)
    with _seeded(cfg):
        masker = cfg.MASKER.build(image)
        encoder = cfg.ENCODER.build(image)
        target, loss = _target_and_loss(cfg, encoder)
        head = cfg.HEAD.build(encoder.spec, target.spec)
        return MaskedImageModel(masker, encoder, head, target, loss)


def build_predictor(cfg: Config, labels: LabelSpec, training_labels: TrainingLabels = None) -> Predictor:
    """Encoder, readouts and criterion of a config of fine-tuning or of a probe, with weights drawn from its SEED.

    Args:
        labels: what is predicted.
        training_labels: those of the training images, for a criterion that needs them; None where weights are loaded.

    Raises ValueError where the parts do not fit each other or the labels, naming the way out.
    """
    with _seeded(cfg):
        encoder = cfg.ENCODER.build(image_spec(cfg))
        criterion = cfg.CRITERION.build(labels, training_labels)
        readouts = []
        for part in cfg.parts("READOUT"):
            with named_by_place(part.place):
                Readout.named(part.name).check(labels)
            readouts.append(part.build(encoder.spec, criterion.outputs))
    if cfg.TASK != "probe":
        return Predictor(encoder, readouts, criterion, cfg.FREEZE.tune_blocks)
    # copies, so that readouts of one kind start with equal weights
    copies = [copy.deepcopy(readouts[setting.readout]) for setting in probe_settings(cfg)]
    return Predictor(encoder, copies, criterion, tune_blocks=0)


def probe_settings(cfg: Config) -> tuple[ProbeSetting, ...]:
    """All that a probe trains side by side: each readout under each rate and weight decay."""
    names = [part.name for part in cfg.parts("READOUT")]
    several = [name if names.count(name) == 1 else f"{name} {number}" for number, name in enumerate(names)]
    rates, decays = cfg.PROBE.rates, cfg.PROBE.weight_decays or (None,)
    settings = []
    for number, rate, decay in product(range(len(names)), rates, decays):
        words = [several[number]] if len(names) > 1 else []
        words += [f"rate {rate:g}"] if len(rates) > 1 else []
        words += [f"weight decay {decay:g}"] if len(decays) > 1 else []
        settings.append(ProbeSetting(number, rate, decay, ", ".join(words)))
    return tuple(settings)


def assumed_labels(cfg: Config) -> LabelSpec:
    """Labels that the readouts and the criterion of a config are for, where the data set is not known.

    Raises ValueError where there are no such labels.
    """
    readouts = [Readout.named(part.name) for part in cfg.parts("READOUT")]
    criterion = Criterion.named(cfg.CRITERION.name)
    kinds = [kind for kind in criterion.kinds if all(kind in readout.kinds for readout in readouts)]
    if not kinds:
        of = "; ".join(f"READOUT.name {readout.name} for {', '.join(readout.kinds)}" for readout in readouts)
        raise ValueError(
            f"CRITERION.name {criterion.name} is for labels of kind {', '.join(criterion.kinds)}, and {of}: choose "
            "parts for the same kind"
        )
    weights = cfg.CRITERION.arguments.get("class_weights")
    return LabelSpec(kinds[0], tuple(map(str, range(len(weights) if isinstance(weights, tuple) else 2))))


def ready(
    module: nn.Module, state: Mapping[str, Tensor], source: Path, cfg: Config, device: torch.device
) -> Preprocess:
    """Loads all weights of a model, or of a part of it, and returns the preprocessing; both are then on the device.

    source: the file of the state dict, for messages. The module is put into eval mode.

    Raises ValueError where the state dict is of another model.
    """
    checkpoint.load_strict(module, state, source)
    module.to(device).eval()
    choose_attention(module, device)
    data = cfg.DATA.shared
    return Preprocess(data.mean, data.std).to(device)


def build_without_memory(cfg: Config, labels: LabelSpec | None = None) -> Model | None:
    """The model on the meta device: shapes and checks, no weights. None where a part of a plugin cannot do that.

    labels: what is predicted; None for labels that the parts are for.

    Raises ValueError as build_model does, and where a weight would have more numbers than can be counted.
    """
    try:
        with torch.device("meta"), Undrawn(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*non-meta parameter")  # of a part that loads weights of its own
            if cfg.TASK == "pretrain":
                return build_model(cfg)
            return build_predictor(cfg, labels or assumed_labels(cfg))
    except (RuntimeError, TypeError, OverflowError) as error:  # TypeError: numpy() of a meta tensor
        if "overflow" in str(error).lower() or isinstance(error, OverflowError):
            raise ValueError(
                f"a weight of this model would be too large: lower its widths, patches or depths "
                f"({str(error).splitlines()[0]})"
            ) from error
        if "meta" in str(error).lower():
            return None
        raise


def model_summary(shape: Model | None, model: Model, image: ImageSpec, masks: int = 1) -> ModelSummary:
    """The summary of the model without weights, or of the other where a part of a plugin needs values."""
    if shape is not None:
        try:
            return summarise_model(shape, image, masks)
        except (RuntimeError, TypeError) as error:  # as in build_without_memory
            if "meta" not in str(error).lower():
                raise
    return summarise_model(model, image, masks)


def _target_and_loss(cfg: Config, encoder: Encoder) -> tuple[Target, Loss | SeveralLosses]:
    """One target with its loss, or all of a list as one. A single loss is that of each."""
    from mim.build.encoders import load_network  # only here: it builds models itself

    estimated = cfg.DATA.mean == "estimate"  # by a run; shapes need no numbers
    channels = encoder.image.channels
    context = TargetContext(
        image=encoder.image,
        encoder=encoder,
        mean=(0.0,) * channels if estimated else cfg.DATA.mean,
        std=(1.0,) * channels if estimated else cfg.DATA.std,
        load=load_network,
    )
    parts, losses = cfg.parts("TARGET"), [part.build() for part in cfg.parts("LOSS")]
    targets = []
    for part in parts:
        with named_by_place(part.place):
            targets.append(Target.named(part.name).of(context, **part.arguments))
    weights = [part.shared.weight for part in parts]
    if len(targets) == 1 and weights == [1.0]:
        return targets[0], losses[0]
    several = Several(targets)
    return several, SeveralLosses(several, losses * (len(targets) // len(losses)), weights)


@contextmanager
def _seeded(cfg: Config) -> Iterator[None]:
    """Inside, weights are drawn from SEED."""
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(cfg.SEED, "weights"))
        yield
