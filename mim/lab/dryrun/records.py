"""Records of measured steps, a line each in a file. They are reused for the same step on the same hardware."""

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from mim.config import Config
from mim.engine.cpu import cpu_name
from mim.io.files import to_json
from mim.lab.dryrun.measure import StepMeasurement

SECTIONS = ("MASKER.", "ENCODER.", "HEAD.", "TARGET.", "LOSS.", "READOUT.", "CRITERION.", "PROBE.", "FREEZE.")
KEYS = (
    *("TASK", "DATA.image_size", "DATA.channels", "DATA.batch_size", "AUGMENT.erase", "AUGMENT.mixup"),
    *("AUGMENT.cutmix", "TRAIN.precision", "TRAIN.compile", "TRAIN.activation_checkpointing", "TRAIN.deterministic"),
    "OPTIMIZER.name",
)
ON_OR_OFF = ("TRAIN.ema", "TRAIN.clip")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """A measured step."""

    date: str  # day and minute, local time
    torch: str  # version of PyTorch
    hardware: dict[str, Any]  # see hardware_of
    step: dict[str, Any]  # see step_keys
    measured: StepMeasurement

    def seconds(self, accumulation: int) -> float:
        """Seconds of a step of this number of micro-batches."""
        return accumulation * self.measured.micro_s + self.measured.update_s


def hardware_of(device: torch.device) -> dict[str, Any]:
    """What the speed depends on: the name of the device and, for a CPU, the number of threads."""
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device)}
    return {"device": cpu_name(), "threads": torch.get_num_threads()}


def step_keys(cfg: Config, classes: int | None) -> dict[str, Any]:
    """The settings on which the cost of a step depends. Steps with the same settings cost the same."""
    keys = {key: list(value) if isinstance(value, tuple) else value for key, value in cfg.flat().items()}
    settings = {key: value for key, value in keys.items() if key.startswith(SECTIONS) or key in KEYS}
    settings |= {f"{key} on": bool(keys[key]) for key in ON_OR_OFF}
    return {**settings, **({"classes": classes} if classes else {})}


def add_record(
    file: Path, cfg: Config, classes: int | None, device: torch.device, measured: StepMeasurement
) -> StepRecord:
    """Appends a record to the file, and makes the file where it does not exist."""
    date, hardware, step = f"{datetime.now():%Y-%m-%d %H:%M}", hardware_of(device), step_keys(cfg, classes)
    record = StepRecord(date=date, torch=torch.__version__, hardware=hardware, step=step, measured=measured)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.write(to_json(asdict(record)) + "\n")
    return record


def find_record(file: Path, cfg: Config, classes: int | None, device: torch.device) -> StepRecord | None:
    """The newest record of the same step on the same hardware; None where there is none. Damaged lines are skipped."""
    query = [hardware_of(device), step_keys(cfg, classes)]
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    for line in reversed(lines):
        try:
            content = json.loads(line)
            record = StepRecord(**{**content, "measured": StepMeasurement(**content["measured"])})
        except (ValueError, TypeError, KeyError):
            continue
        if [record.hardware, record.step] == query:
            return record
    return None
