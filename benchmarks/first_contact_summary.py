"""The Markdown summary of first_contact.py: a line a step, then the ends of outputs that are worth reading."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

TEST = re.compile(r"(?:^|\] )(?:\S+::\S+(?: \S+)* )?(PASSED|FAILED|ERROR|SKIPPED)\b", re.MULTILINE)
COUNTS = re.compile(r"^=+ (.*\d+ (?:passed|failed|skipped|error).*?) =+$", re.MULTILINE)
FAILED_TEST = re.compile(r"^(?:FAILED|ERROR) \S*::(\S+)", re.MULTILINE)
LINES = 40  # of an output


def summary(records: Sequence[Mapping[str, Any]]) -> str:
    """All records, the newest of each step and size."""
    newest = list({(record["name"], record["tiny"]): record for record in records}.values())
    machine = next((record["figures"]["machine"] for record in newest if "machine" in record["figures"]), "")
    tiny = " At a tiny size: its numbers mean nothing." if any(record["tiny"] for record in newest) else ""
    table = ["| step | state | s | result |", "|---|---|---|---|"]
    for record in newest:
        line = headline(record).replace("|", "/")
        table.append(f"| {record['name']} | {record['state']} | {record['seconds']:.0f} | {line} |")
    blocks = ["# First contact", f"{machine}{tiny}".strip(), "\n".join(table)]
    for record in newest:
        if record["state"] in ("failed", "stopped at its limit") or record["name"] in ("attention", "GPU tests"):
            tail = "\n".join(record["tail"].splitlines()[-LINES:]).replace("```", "'''")
            blocks.append(f"## {record['name']}: {record['state']}\n\n`{record['command']}`\n\n```\n{tail}\n```")
    return "\n\n".join(block for block in blocks if block) + "\n"


def headline(record: Mapping[str, Any]) -> str:
    """What came out of a step, in one line."""
    figures, name = record["figures"], record["name"]
    if record["state"] == "skipped":
        return record["reason"]
    if name == "GPU tests":
        return tests_line(record["tail"])
    if name == "environment" and figures:
        return ", ".join(f"{key} {value}" for key, value in figures.items() if key != "machine")
    if name == "loader" and "alone" in figures:
        return loader_line(figures)
    if name == "cifar10" and figures:
        return cifar10_line(figures)
    if "batches" in figures:
        return training_line(figures)
    return record["reason"] or next(reversed(record["tail"].splitlines()), "")[:120]


def training_line(figures: Mapping[str, Any]) -> str:
    """Speed, share of the ceiling and memory of each contender, and the ratios."""
    parts = []
    for batch in figures["batches"]:
        for name, values in batch["contenders"].items():
            share = "" if values["mfu"] is None else f", MFU {values['mfu']:.1%}"
            parts.append(f"{name} {values['images_per_s']:,.0f} images/s{share}, {values['tensors'] / 2**30:.2f} GiB")
        parts += [f"{name}: out of memory" for name in batch["out_of_memory"]]
        parts += [
            f"ours / {r['against']} {r['ratio']:.2f} ({r['low']:.2f} to {r['high']:.2f})" for r in batch["ratios"]
        ]
    return "; ".join(parts)


def tests_line(output: str) -> str:
    """How many tests passed, and which failed; of a run that was stopped, as far as it came."""
    if counts := COUNTS.findall(output):
        names = ", ".join(FAILED_TEST.findall(output))
        return f"{counts[-1]}{': ' if names else ''}{names}"
    states = TEST.findall(output)
    return ", ".join(f"{states.count(state)} {state.lower()}" for state in dict.fromkeys(states)) + " when it ended"


def loader_line(figures: Mapping[str, Any]) -> str:
    """Images per second on one core, and how long a training step waits."""
    alone = f"alone on one core {figures['alone']['ratio']:.2f} times torchvision"
    if "training" not in figures:
        return alone
    ours = figures["training"]["batches"][0]["contenders"]["ours"]
    waiting = f"{figures['waiting']:.0%} of it" if "waiting" in figures else "unknown"
    speed = f"{ours['images_per_s']:,.0f} images/s with {figures['workers']} workers"
    return f"{alone}; training on files {speed}, waiting {waiting}"


def cifar10_line(figures: Mapping[str, Any]) -> str:
    """The accuracies over seconds."""
    parts = []
    for phase, key in (("pretraining", "knn/top1"), ("fine-tuning", "val/top1")):
        if phase in figures:
            run = figures[phase]
            points = [
                f"{row[key]:.1%} at {run['from_s'] + row['seconds']:.0f} s" for row in run["progress"] if key in row
            ]
            parts.append(
                f"{phase}: {run['epochs']} epochs at {run['images_per_s']:,} images/s, {key} {', '.join(points)}"
            )
    return "; ".join(parts)
