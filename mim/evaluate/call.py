"""Calling `mim.evaluate`: one function for all evaluations, with the settings of the command as keywords."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mim.config import Overrides
from mim.data.labels.settings import LabelSettings
from mim.engine import checkpoint
from mim.evaluate.classify import classify
from mim.evaluate.corruptions import CorruptionSettings, corruptions
from mim.evaluate.dense import DenseSettings, dense
from mim.evaluate.encoder import features, knn, logistic
from mim.evaluate.patches import PatchSettings
from mim.evaluate.predict import predict
from mim.evaluate.retrieval import RetrievalSettings, retrieval
from mim.io.yaml import read_texts
from mim.pictures.channels import Channels
from mim.registry import one_of
from mim.results import EvaluationResult
from mim.structures import Pool


@dataclass(frozen=True, slots=True)
class _Call:
    """What every evaluation is given."""

    run: Path
    images: tuple[Path, ...]
    output: Path | None
    overrides: Overrides
    what: str

    @property
    def folder(self) -> Path:
        """Where pictures go."""
        return self.output or Path(self.what)

    @property
    def file(self) -> Path:
        """Where values of images go. Raises ValueError where it is not named."""
        if self.output is None:
            raise ValueError(f"{self.what} writes a file: name it with output=")
        return self.output


def evaluate(
    run: str | Path,
    what: str = "",
    images: str | Path | Sequence[str | Path] = (),
    *,
    output: str | Path | None = None,
    overrides: Overrides = (),
    **settings: Any,
) -> EvaluationResult:
    """Evaluates a checkpoint without training it, as `mim-evaluate` does, and returns what it found.

    Args:
        run: a run folder (its best or last checkpoint) or a checkpoint.
        what: `knn`, `logistic`, `classify`, `features`, `predict`, `dense`, `retrieval` or `corruptions`; by default
            `classify` for fine-tuning and probes, `knn` for pretraining.
        images: files, folders and lists, for `predict`, `dense` and `retrieval`.
        output: the file that `features` and `predict` write, which need it; the folder of the pictures of `dense`,
            `retrieval` and `corruptions`, by default their name.
        overrides: config keys, such as `{"DATA.path": "/data/plates"}`.
        settings: those of the evaluation, under the names of the flags of `mim-evaluate`: `k=10`, `pool="class"`.
            The number of images on a sheet, or of corrupted ones, is `count`.

    Raises ValueError for another evaluation or setting, and what the evaluation raises.
    """
    what = what or _default(Path(run))
    if what not in _EVALUATIONS:
        raise ValueError(f"there is no evaluation {what!r}. {one_of(what, _EVALUATIONS)}")
    function = _EVALUATIONS[what]
    allowed = [name for name in inspect.signature(function).parameters if name != "call"]
    for name in settings:
        if name not in allowed:
            raise ValueError(f"{what} has no setting {name!r}. {one_of(name, allowed)}")
    paths = tuple(Path(path) for path in ([images] if isinstance(images, (str, Path)) else images))
    if paths and what not in _WITH_IMAGES:
        raise ValueError(f"{what} takes no images: it reads those of the run; name others with DATA.path in overrides")
    call = _Call(Path(run), paths, Path(output) if output is not None else None, overrides, what)
    return EvaluationResult(what, function(call, **settings))


def _default(run: Path) -> str:
    """The evaluation that suits a checkpoint."""
    task = read_texts(checkpoint.load(checkpoint.find(run))["config"]).get("TASK")
    return "knn" if task == "pretrain" else "classify"


def _labels(share: float, per_class: int, label_seed: int) -> LabelSettings:
    return LabelSettings(share=share, per_class=per_class, seed=label_seed)


def _knn(
    call: _Call,
    pool: Pool = "mean",
    k: int | None = None,
    temperature: float = 0.07,
    share: float = 1.0,
    per_class: int = 0,
    label_seed: int = 0,
) -> dict[str, Any]:
    return knn(call.run, call.overrides, pool, k, temperature, _labels(share, per_class, label_seed))


def _logistic(
    call: _Call, pool: Pool = "mean", c: float = 1.0, share: float = 1.0, per_class: int = 0, label_seed: int = 0
) -> dict[str, Any]:
    return logistic(call.run, call.overrides, pool, c, _labels(share, per_class, label_seed))


def _classify(call: _Call, setting: str | None = None) -> dict[str, Any]:
    return classify(call.run, call.overrides, setting)


def _features(call: _Call, pool: Pool = "mean") -> dict[str, Any]:
    return features(call.run, call.overrides, pool, call.file)


def _predict(call: _Call, setting: str | None = None) -> dict[str, Any]:
    if not call.images:
        raise ValueError("predict: name images: files, folders or a .txt list")
    return predict(call.run, call.images, call.file, call.overrides, setting)


def _dense(
    call: _Call,
    count: int | None = None,
    stride: int | None = None,
    channels: Channels = (),
    patches: int = 20_000,
    k: int | None = None,
    c: float | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    fitted = PatchSettings(patches=patches, k=k, c=c, seed=seed)
    look = DenseSettings(stride=stride, images=count, channels=channels, patches=fitted, seed=seed)
    return dense(call.run, call.images, call.folder, call.overrides, look)


def _retrieval(
    call: _Call,
    count: int | None = None,
    pool: Pool = "mean",
    k: int = 10,
    leave_one_out: bool = False,
    channels: Channels = (),
    seed: int = 0,
) -> dict[str, Any]:
    search = RetrievalSettings(pool=pool, k=k, leave_one_out=leave_one_out, images=count, channels=channels, seed=seed)
    return retrieval(call.run, call.images, call.folder, call.overrides, search)


def _corruptions(
    call: _Call, only: Sequence[str] = (), count: int | None = None, seed: int = 0, setting: str | None = None
) -> dict[str, Any]:
    corrupted = CorruptionSettings(only=only, images=count, seed=seed, setting=setting)
    return corruptions(call.run, call.folder, call.overrides, corrupted)


_WITH_IMAGES = ("predict", "dense", "retrieval")
_EVALUATIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "knn": _knn,
    "logistic": _logistic,
    "classify": _classify,
    "features": _features,
    "predict": _predict,
    "dense": _dense,
    "retrieval": _retrieval,
    "corruptions": _corruptions,
}
