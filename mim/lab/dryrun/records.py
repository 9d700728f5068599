"""Benchmarks: steps that were measured on some machine, a line each in a file, and found again for a like step."""

import json
import platform
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from mim.config.load import flat
from mim.lab.dryrun.measure import Measured

WHOLE = ("MASKER.", "ENCODER.", "HEAD.", "TARGET.", "LOSS.", "CLASSIFIER.", "FREEZE.")
KEYS = (
    *(
        "TASK",
        "DATA.image_size",
        "DATA.channels",
        "DATA.batch_size",
        "AUGMENT.erase",
        "AUGMENT.mixup",
        "AUGMENT.cutmix",
    ),
    *("TRAIN.precision", "TRAIN.compile", "TRAIN.activation_checkpointing", "TRAIN.deterministic", "OPTIMIZER.name"),
)
ON_OR_OFF = ("TRAIN.ema", "TRAIN.clip")
CPUS = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A measured step. date: day and minute, local time; hardware: as hardware() gives it; step: as step_of() does."""

    date: str
    torch: str
    hardware: dict[str, Any]
    step: dict[str, Any]
    measured: Measured

    def seconds(self, accumulation: int) -> float:
        """Of a step of so many micro-batches."""
        return accumulation * self.measured.micro_s + self.measured.update_s


def hardware(device: torch.device) -> dict[str, Any]:
    """What speed depends on: the name of the device and, of a CPU, the number of threads."""
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device)}
    names = [line.partition(":")[2].strip() for line in _lines(CPUS) if line.startswith("model name")]
    return {
        "device": names[0] if names else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }


def step_of(cfg: CfgNode, classes: int | None) -> dict[str, Any]:
    """All of a config that a step's cost depends on; steps that are equal in it cost the same."""
    keys = flat(cfg)
    found = {key: value for key, value in keys.items() if key.startswith(WHOLE) or key in KEYS}
    found |= {f"{key} on": bool(keys[key]) for key in ON_OR_OFF}
    return {**found, **({"classes": classes} if classes else {})}


def remember(file: Path, cfg: CfgNode, classes: int | None, device: torch.device, measured: Measured) -> Record:
    """Adds a record to the file, which is made where there is none."""
    record = Record(
        date=f"{datetime.now():%Y-%m-%d %H:%M}",
        torch=torch.__version__,
        hardware=hardware(device),
        step=step_of(cfg, classes),
        measured=measured,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(asdict(record)) + "\n")
    return record


def recall(file: Path, cfg: CfgNode, classes: int | None, device: torch.device) -> Record | None:
    """The newest record of a like step on like hardware; None where there is none. Damaged lines are passed over."""
    wanted = json.loads(json.dumps([hardware(device), step_of(cfg, classes)]))
    for line in reversed(_lines(file)):
        try:
            held = json.loads(line)
            record = Record(**{**held, "measured": Measured(**held["measured"])})
        except (ValueError, TypeError, KeyError):
            continue
        if [record.hardware, record.step] == wanted:
            return record
    return None


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
