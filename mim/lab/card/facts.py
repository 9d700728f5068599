"""Facts of a run for its card: what its run folder says, and nothing else."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from mim.config import Config
from mim.engine.run_folder import RECONSTRUCTIONS, SEGMENTATIONS, RunFolder
from mim.lab.comparison.formatting import value_text
from mim.lab.comparison.runs.run import Run, read_run
from mim.lab.label_metrics import METRICS, kind_of
from mim.metric_keys import VAL_BASELINE, VAL_LOSS

UNKNOWN = "unknown"
IMAGES = re.compile(r"  images +(\d.*? to train.*?), ([\d,]+) held out;")
COUNT = re.compile(r"[\d,]+( of [\d,]+)?")
PICTURES = {RECONSTRUCTIONS: "reconstruction.png", SEGMENTATIONS: "segmentation.png"}
PARTS = {"MASKER": "masker", "HEAD": "head", "TARGET": "target", "LOSS": "loss", "READOUT": "readout"}
VERSIONS = ("python", "torch", "torchvision", "timm", "numpy")
Rows = list[tuple[str, str]]  # a name and a text


@dataclass(frozen=True, slots=True)
class Facts:
    """A finished run as its folder tells it."""

    run: Run
    summary: dict[str, Any]  # summary.json as it is
    images: tuple[str, str]  # to train, as `1,437 to train`, and the number of those held out, as its log says

    @property
    def cfg(self) -> Config:
        return self.run.cfg

    @property
    def dataset(self) -> str:
        """The data set without the folders that it lies in."""
        data = self.cfg.DATA
        return f"{data.name}: {PurePath(data.path).name}" if data.path else str(data.name)

    @property
    def count(self) -> str:
        """The images that it was trained on, such as `1,437 images`."""
        count = COUNT.match(self.images[0])
        return f"{count[0] if count else 'an unknown number of'} images"

    def data(self) -> Rows:
        """What the images are, and what is done to them."""
        data = self.cfg.DATA
        height, width = data.image_size
        train, held_out = self.images
        rows = [
            ("data set", self.dataset),
            ("images", UNKNOWN if train == UNKNOWN else f"{train}, {held_out} held out"),
            ("size", f"{height} x {width} pixels"),
            ("channels", f"{data.channels}"),
            (
                "pixel values",
                "uint8 / 255, uint16 / 65535, floats as they are" if data.scale == "type" else value_text(data.scale),
            ),
            ("mean", f"{list(data.mean)}"),
            ("standard deviation", f"{list(data.std)}"),
            *(("augmentation", text) for text in self._parts("AUGMENT")),
        ]
        return [*rows, *(("further augmentation", text) for text in self._parts("AUGMENTATION") if text != "none")]

    def recipe(self) -> Rows:
        """How it was trained, and on what."""
        cfg, train, summary = self.cfg, self.cfg.TRAIN, self.summary
        parts = [(title, text) for section, title in PARTS.items() for text in self._parts(section)]
        length = f"{train.epochs} epoch{'s' * (train.epochs != 1)}, {summary.get('steps', UNKNOWN)} steps"
        return [
            ("task", cfg.TASK),
            ("recipe", cfg.RECIPE or "none of the shipped ones"),
            *(("encoder", text) for text in self._parts("ENCODER")),
            *parts,
            *(("optimizer", text) for text in self._parts("OPTIMIZER")),
            *(("schedule", text) for text in self._parts("SCHEDULE")),
            ("length", f"{length}, {summary.get('images_seen', 0):,} images seen"),
            ("started from", self._origin()),
            ("precision", train.precision),
            ("seed", f"{cfg.SEED}"),
            *self._machine(),
        ]

    def _parts(self, section: str) -> list[str]:
        """The settings or parts of a section, each in one line; none where the task has no such section."""
        content = self.cfg.values().get(section, [])
        return [as_text(values) for values in (content if isinstance(content, list | tuple) else [content])]

    def _origin(self) -> str:
        checkpoint = str(self.cfg.INIT.checkpoint)
        name = checkpoint if checkpoint.startswith("hf:") else PurePath(checkpoint).name
        return name or (
            "timm's pretrained weights" if self.run.settings.get("ENCODER.pretrained") else "random weights"
        )

    def _machine(self) -> Rows:
        machine = self.run.environment
        git = machine.get("git")
        state = UNKNOWN
        if isinstance(git, dict):
            state = f"{git.get('commit')}{', with changes that are not committed' if git.get('changed') else ''}"
        processes, seconds = machine.get("processes", UNKNOWN), self.summary.get("seconds")
        return [
            ("machine", f"{machine.get('device', UNKNOWN)}, {processes} process{'es' * (processes != 1)}"),
            ("time", f"{seconds:,.0f} s" if isinstance(seconds, int | float) else UNKNOWN),
            ("versions", ", ".join(f"{name} {machine.get(name, UNKNOWN)}" for name in VERSIONS)),
            ("commit of mim-toolkit", state),
        ]

    def scores(self) -> Rows:
        """The metrics of held-out labels, with their intervals over these images."""
        kind = kind_of(self.summary)
        rows = []
        for metric in METRICS[kind] if kind else ():
            value, interval = self.summary.get(metric.key), self.summary.get(f"{metric.key}_interval")
            if isinstance(value, int | float):
                unit = f", {metric.unit}" if metric.unit else ""
                ends = [metric.in_unit(end) for end in interval] if isinstance(interval, list) else []
                text = f" [{ends[0]:.4g}, {ends[1]:.4g}]" if len(ends) == 2 else ""
                rows.append((f"{metric.title}{unit}", f"{metric.in_unit(value):.4g}{text}"))
        return rows

    def warnings(self) -> list[str]:
        """What the files of the run say against it."""
        summary, lines = self.summary, []
        loss, baseline = summary.get(VAL_LOSS), summary.get(VAL_BASELINE)
        if isinstance(loss, float) and isinstance(baseline, float) and loss >= baseline:
            lines.append(
                f"Its held-out loss, {loss:.4g}, is not below that of predicting the mean, {baseline:.4g}: by this "
                "measure it learned nothing."
            )
        if broken := summary.get("data/broken_files"):
            lines.append(f"{broken} broken files were replaced by other images in training.")
        if left_out := summary.get("evaluation/left_out"):
            lines.append(f"Evaluations left out {left_out} broken files.")
        undefined = summary.get("val/undefined")
        if isinstance(undefined, dict):
            lines += [f"`{key}`: {reason}." for key, reason in undefined.items()]
        return lines

    def picture(self) -> tuple[Path, str] | None:
        """The newest picture of held-out images, and its name in the folder of the card; None where there is none."""
        for kind, name in PICTURES.items():
            steps = {int(path.stem.partition("-")[2]): path for path in (self.run.folder / kind).glob("step-*.png")}
            if steps:
                return steps[max(steps)], name
        return None


def read_facts(folder: Path) -> Facts:
    """The facts of a run folder. Raises ValueError where it is none of a finished run, or damaged."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: a model card is written from a run folder, so name one")
    run, remarks = read_run(folder)
    if run is None:
        raise ValueError(f"{folder}: {remarks[0]}. A model card is written from the folder of a finished run")
    try:
        summary = json.loads(RunFolder(folder).summary.read_text(encoding="utf-8"))
        log = RunFolder(folder).log.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:  # of the log; read_run has read the summary
        log = ""
    return Facts(run, summary, _counts(log))


def _counts(log: str) -> tuple[str, str]:
    counts = IMAGES.findall(log)
    return counts[-1] if counts else (UNKNOWN, UNKNOWN)


def as_text(values: Mapping[str, Any]) -> str:
    """A section of a config in one line, the name of its part first."""
    pairs = [f"{key} {_short(value)}" for key, value in values.items() if key != "name" and value not in ("", ())]
    name = values.get("name")
    return f"{name} ({', '.join(pairs)})" if name and pairs else f"{name or ', '.join(pairs)}"


def _short(value: Any) -> str:
    """A value without the folders of a path that is one of this machine alone."""
    return value_text(PurePath(value).name if is_local(value) else value)


def is_local(value: Any) -> bool:
    """Whether a value is a path that means nothing on another machine, and tells of this one."""
    return isinstance(value, str) and (PurePath(value).is_absolute() or value.startswith(("~", "..")))
