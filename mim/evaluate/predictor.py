"""The predictor of a checkpoint that was fine-tuned or probed: its encoder, its readouts, and what they answer."""

import logging
from dataclasses import dataclass
from pathlib import Path

from mim import build
from mim.data.labels.matched import match_labels
from mim.data.preprocess import Preprocess
from mim.data.sources.base import Source
from mim.data.sources.classes import class_names, numbers
from mim.evaluate.loading import LoadedCheckpoint, check_labelled, no_labels, ready
from mim.io.formatting import list_names
from mim.io.weights import CLASSES, LABEL_KIND, stored_classes
from mim.metric_keys import CHOICE_SETTING, VAL_BEST_RATE
from mim.readouts import Predictor
from mim.readouts.base import AttendingReadout
from mim.structures import LabelSpec

LOG = logging.getLogger("mim")

BIAS = "readouts.0.linear.bias"


@dataclass(frozen=True, slots=True)
class LoadedPredictor:
    """The predictor of a checkpoint, on this process's device and in eval mode."""

    model: Predictor
    preprocess: Preprocess
    spec: LabelSpec  # what it answers; classes are numbers where the checkpoint has no names
    is_named: bool  # whether the checkpoint has the names
    settings: tuple[str, ...]  # title of the setting of each readout
    chosen: int | None  # the only one, the one that was asked for, or the one that the run chose, if known

    def describe(self, chosen: int) -> dict[str, str]:
        """Which readout of a probe answers; nothing where there is one."""
        if len(self.settings) == 1:
            return {}
        return {"setting": f"{self.settings[chosen]}, one of {len(self.settings)}"}

    def require_chosen(self, path: Path) -> int:
        """The position of the readout that answers. Raises ValueError, naming the checkpoint, where it is not known."""
        if self.chosen is None:
            raise ValueError(
                f"{path} has {len(self.settings)} settings and no score that says which is best: name one with "
                f"--setting: {'; '.join(self.settings)}"
            )
        return self.chosen


def load_predictor(loaded: LoadedCheckpoint, setting: str | None) -> LoadedPredictor:
    """The predictor of a checkpoint. Raises ValueError where it has none, or no such setting."""
    cfg, content = loaded.cfg, loaded.content
    if cfg.TASK == "pretrain":
        raise ValueError(f"{loaded.path} is a pretraining run and has no classifier: use knn or logistic")
    if not any(name.startswith("readouts.") for name in content["model"]):
        raise ValueError(f"{loaded.path} holds an encoder without a classifier: use knn or logistic")
    spec, is_named = _label_spec(loaded)
    model = build.build_predictor(cfg, spec)
    grid = build.probe_settings(cfg) if cfg.TASK == "probe" else ()
    settings = tuple(each.title for each in grid) or ("",)
    if setting is not None and setting not in settings:
        known = "; ".join(filter(None, settings)) or "one alone"
        raise ValueError(f"--setting is {setting!r}, and the settings of {loaded.path} are: {known}")
    results = content.get("results", {})
    chosen = results.get(CHOICE_SETTING)
    if chosen is None and VAL_BEST_RATE in results:
        chosen = next((n for n, each in enumerate(grid) if each.rate == results[VAL_BEST_RATE]), None)
    chosen = settings.index(setting) if setting is not None else 0 if len(settings) == 1 else chosen
    return LoadedPredictor(model, ready(loaded, model, ""), spec, is_named, settings, chosen)


def load_attending(loaded: LoadedCheckpoint) -> tuple[Predictor, AttendingReadout, str] | None:
    """The predictor of a checkpoint, its readout that attends to patches, and the title of the readout's setting.

    It is the chosen one or, where that does not attend, the first that does; None where there is none.
    """
    if loaded.cfg.TASK == "pretrain" or not any(name.startswith("readouts.") for name in loaded.content["model"]):
        return None
    predictor = load_predictor(loaded, None)
    attending = {n: each for n, each in enumerate(predictor.model.readouts) if isinstance(each, AttendingReadout)}
    if not attending:
        return None
    number = predictor.chosen if predictor.chosen in attending else min(attending)
    return predictor.model, attending[number], predictor.settings[number]


def _label_spec(loaded: LoadedCheckpoint) -> tuple[LabelSpec, bool]:
    """What the readouts answer, and whether the checkpoint has its names. Warns where it has not."""
    content = loaded.content
    names, bias = content.get(CLASSES) or (), content["model"].get(BIAS)
    # cross-entropy has an output for each class, and is the only one of files without names
    outputs = len(bias) if bias is not None and loaded.cfg.CRITERION.name == "cross_entropy" else len(names)
    classes = stored_classes(names, outputs)
    if not classes:
        LOG.warning(
            "%s holds no names of its classes, as runs of mim 0.1.0: number 0 stands for the first class of the data "
            "that it was trained on, in sorted order, and so on",
            loaded.path,
        )
    return LabelSpec(content.get(LABEL_KIND, "class"), classes or numbers(outputs)), bool(classes)


def matched_source(loaded: LoadedCheckpoint, predictor: LoadedPredictor) -> tuple[Source, str]:
    """The held-out images with the names that the predictor answers, and what differs between the two.

    Raises ValueError where there are none, or their labels are others; see match_labels.
    """
    train, held_out = build.build_sources(loaded.cfg)
    if len(held_out) and held_out.label_kind is None:
        raise ValueError(f"the held-out images {no_labels(loaded)}; predict says the class of images without labels")
    check_labelled(loaded, held_out)
    spec = predictor.spec if predictor.is_named else _by_number(loaded, predictor.spec, train)
    matched, note = match_labels(held_out, spec, f"the data that {loaded.path} was trained on")
    if note:
        LOG.warning("%s", note)
    return matched, note


def _by_number(loaded: LoadedCheckpoint, spec: LabelSpec, train: Source) -> LabelSpec:
    """The classes of the data. Raises ValueError where they are not as many as the outputs."""
    names = class_names(train)
    if len(names) != spec.outputs:
        raise ValueError(
            f"{loaded.path} holds no names of its {spec.outputs:,} classes, and {train.label_origin()} have "
            f"{len(names):,}: {list_names(names)}"
        )
    return LabelSpec(spec.kind, names)
