"""Files: a benchmark as markdown, with all that it takes to repeat it, and as figures for programs."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mim.io.files import write_atomically, write_text
from mim.lab.benchmark import tables
from mim.lab.benchmark.data import LoadingOutcome
from mim.lab.benchmark.profile_picture import Bars, profile_picture
from mim.lab.benchmark.run import Outcome
from mim.lab.benchmark.tables import Table


def write(outcome: Outcome | LoadingOutcome, folder: Path, arguments: Sequence[str]) -> list[Path]:
    """Adds it to the file of this theme, hardware and day in a folder, behind what that holds; gives what was written.

    arguments: of tools/benchmark.py.
    """
    stem = f"{outcome.theme}_{outcome.machine.slug}_{outcome.date:%Y-%m-%d}"
    file, picture = folder / f"{stem}.md", folder / f"{stem}_{outcome.date:%H%M%S}.png"
    folder.mkdir(parents=True, exist_ok=True)
    written = [file]
    if isinstance(outcome, Outcome) and outcome.profiles:
        drawn = picture_of(outcome)
        write_atomically(picture, lambda held: held.write(drawn))
        written.append(picture)
    head = f"# {outcome.theme} on {outcome.machine}, {outcome.date:%Y-%m-%d}\n"
    before = file.read_text(encoding="utf-8") if file.is_file() else head
    write_text(file, f"{before}\n{section(outcome, arguments, picture.name)}")
    return written


def section(outcome: Outcome | LoadingOutcome, arguments: Sequence[str], picture: str = "") -> str:
    """What one call found, in markdown."""
    call = f"```\n{command(arguments, outcome)}\n```"
    if isinstance(outcome, LoadingOutcome):
        found, notes = tables.loading_lines(outcome), tables.loading_notes(outcome)
        blocks = [f"## {outcome.date:%H:%M}: the loader alone", call, _markdown(tables.loading_table(outcome))]
    else:
        found, notes = tables.best_lines(outcome) + tables.ratio_lines(outcome), tables.notes(outcome)
        blocks = [f"## {outcome.date:%H:%M}: {outcome.batches}, {outcome.precision}", call]
        blocks += [_markdown(table) for table in (tables.time_table(outcome), tables.work_table(outcome))]
    blocks.append(_list([f"**{line}**" for line in found]))
    if isinstance(outcome, Outcome) and outcome.profiles:
        blocks += [
            f"![{outcome.theme}: a step by kind of work]({picture})",
            _markdown(tables.kind_table(outcome.profiles)),
        ]
        blocks += [_markdown(tables.operator_table(profile)) for profile in outcome.profiles]
    blocks.append(_list([*notes, outcome.machine.told]))
    return "\n\n".join(block for block in blocks if block) + "\n"


def command(arguments: Sequence[str], outcome: Outcome | LoadingOutcome) -> str:
    """The call that repeats it."""
    shared = isinstance(outcome, Outcome) and outcome.strategy
    start = ["torchrun", "--nproc_per_node", "1"] if shared else ["python"]
    return shlex.join([*start, "tools/benchmark.py", *arguments])


def picture_of(outcome: Outcome) -> bytes:
    """A PNG file of the profiles."""
    bars = [
        Bars(profile.side, {kind: 1000 * seconds for kind, seconds in profile.kinds().items()})
        for profile in outcome.profiles
    ]
    busy = {"cpu": "time of the CPU", "cuda": "time of the GPU"}[outcome.profiles[0].of]
    batch = f"batch {outcome.best.batch}, {outcome.precision}"
    lines = f"{outcome.machine}, PyTorch {outcome.machine.versions['torch']}; {batch}; {busy}, under the profiler"
    return profile_picture(f"{outcome.theme}: a training step by kind of work", lines, bars)


def figures(outcome: Outcome | LoadingOutcome, arguments: Sequence[str]) -> dict[str, Any]:
    """All of it as plain values."""
    shared = {
        "theme": outcome.theme,
        "command": command(arguments, outcome),
        "date": f"{outcome.date:%Y-%m-%d %H:%M:%S}",
        "machine": asdict(outcome.machine),
    }
    if isinstance(outcome, LoadingOutcome):
        sides = {f"{name}_images_per_s": list(found) for name, found in outcome.sides.items()}
        return {**shared, "images": outcome.images, "crops": outcome.crops, **sides, "ratio": outcome.ratio}
    return shared | _step_figures(outcome)


def _step_figures(outcome: Outcome) -> dict[str, Any]:
    return {
        "precision": outcome.precision,
        "strategy": outcome.strategy,
        "rounds": outcome.asked.rounds,
        "real_images": outcome.asked.real,
        "ceiling": asdict(outcome.ceiling),
        "tries": [
            {
                "batch": found.batch,
                "steps_a_round": found.turn,
                "out_of_memory": list(found.failed),
                "sides": {
                    held.side.name: {
                        "model": held.side.model,
                        "parameters": held.side.parameters,
                        "flops_per_image": held.side.flops,
                        "images_per_s": held.images_per_s,
                        "step_s": held.step_s,
                        "step_s_by_round": list(held.round_s),
                        "phases_s": {phase: held.phase_s(phase) for phase in tables.PHASES},
                        "mfu": held.utilisation(outcome.ceiling),
                        "tensor_bytes": held.tensors,
                        "process_bytes": held.process,
                        "differs": list(held.side.notes),
                    }
                    for held in found.figures
                },
                "ratios": [asdict(one) for one in found.ratios()],
            }
            for found in outcome.tries
        ],
        "best_ratios": [asdict(one) for one in outcome.best_ratios()],
        "profiles": [
            {"side": profile.side, "of": profile.of, "kinds_s": profile.kinds()} for profile in outcome.profiles
        ],
    }


def _markdown(table: Table) -> str:
    marks = [":--" if place < table.left else "--:" for place in range(len(table.heads))]
    rows = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in (table.heads, *table.rows)]
    lines = [f"| {rows[0]} |", f"|{'|'.join(marks)}|", *(f"| {row} |" for row in rows[1:])]
    return f"**{table.title}**\n\n" + "\n".join(lines)


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
