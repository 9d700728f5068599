"""Tables and lines of a benchmark, the same for a terminal and for a file."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from mim.lab.benchmark.data import LoadingOutcome
from mim.lab.benchmark.profiling import Profile
from mim.lab.benchmark.rounds import Figures, Ratio
from mim.lab.benchmark.run import Outcome

PHASES = {"batch": "data", "forward": "forward", "backward": "backward", "update": "optimizer"}
MIB, GIB = 2**20, 2**30
TOP = 15  # operators
NAME = 36  # letters of an operator's name


@dataclass(frozen=True, slots=True)
class Table:
    """title; heads and rows: the first `left` columns are words, the others figures."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1


def time_table(outcome: Outcome) -> Table:
    """Images a second, and milliseconds of a step and of its phases."""
    phases = {phase: name for phase, name in PHASES.items() if outcome.asked.real or phase != "batch"}
    heads = (*_batch_head(outcome), "", "images/s", "ms a step", *phases.values())
    rows = []
    for found in _all(outcome):
        spent = (found.phase_s(phase) for phase in phases)
        figures = (found.images_per_s, 1000 * found.step_s, *(1000 * (seconds or 0) for seconds in spent))
        rows.append((*_batch(outcome, found.batch), found.side.name, *map(figure, figures)))
    rows += [
        (*_batch(outcome, one.batch), name, "out of memory", *[""] * (len(phases) + 1))
        for one in outcome.tries
        for name in one.failed
    ]
    return Table("Time", heads, tuple(sorted(rows, key=lambda row: _order(outcome, row))), _words(outcome))


def work_table(outcome: Outcome) -> Table:
    """What the model needs and what it takes: parameters, operations, the share of the ceiling, memory."""
    every = list(_all(outcome))
    unit, size = ("GiB", GIB) if max(found.tensors for found in every) >= GIB else ("MiB", MIB)
    heads = ("parameters", "GFLOP an image", "TFLOP/s", "MFU", f"tensors, {unit}", f"process, {unit}")
    rows = []
    for found in every:
        flops, share = found.side.flops, found.utilisation(outcome.ceiling)
        rows.append(
            (
                *_batch(outcome, found.batch),
                found.side.name,
                f"{found.side.parameters:,}",
                "-" if flops is None else figure(flops / 1e9),
                "-" if flops is None else figure(flops * found.images_per_s / 1e12),
                "-" if share is None else f"{share:.1%}",
                f"{found.tensors / size:.2f}",
                "-" if found.process is None else f"{found.process / size:.2f}",
            )
        )
    return Table("Work and memory", (*_batch_head(outcome), "", *heads), tuple(rows), _words(outcome))


def ratio_lines(outcome: Outcome) -> list[str]:
    """Ours against each other side."""
    lines, several = [], len(outcome.tries) > 1
    for found in outcome.tries:
        at = f" at batch {found.batch}" if several else ""
        lines += [_ratio(one, at) for one in found.ratios()]
    return lines + ([_ratio(one, ", each at its best batch") for one in outcome.best_ratios()] if several else [])


def best_lines(outcome: Outcome) -> list[str]:
    """The best batch of each side, where several were tried."""
    if len(outcome.tries) == 1:
        return []
    best = [found for name in ("ours", *outcome.asked.against) if (found := outcome.best_of(name)) is not None]
    return [f"Best batch of {found.side.name}: {found.batch}, {figure(found.images_per_s)} images/s" for found in best]


def notes(outcome: Outcome) -> list[str]:
    """How it was measured, and in what sides differ."""
    asked, product = outcome.asked, outcome.ceiling
    turns = " and ".join(dict.fromkeys(f"{found.turn}" for found in outcome.tries))
    sides = {found.side.name: found.side for found in _all(outcome)}
    images = (
        "the config's own images; waiting for its loader is part of a step"
        if asked.real
        else "random images, made on the device; making them is no part of a step"
    )
    spread = " of each side in turn, behind one that does not count" if len(sides) > 1 else ""
    return [
        f"{asked.rounds} rounds of {turns} step{'s' * (turns != '1')}{spread}; 2 warm-up steps. Times are medians over "
        "rounds, phases over steps. A step is one micro-batch and its update.",
        f"{outcome.precision}; {images}.",
        f"MFU: operations of the model (forward and backward; a multiply-add is two) by the step's time, as a share of "
        f"the best {product.side} x {product.side} matrix product of the same minutes: {figure(product.flops / 1e12)} "
        "TFLOP/s.",
        "Memory: the most that tensors took at once, weights and optimizer included, and by how much the process grew; "
        "the first side also loads libraries, which the others find.",
        *(f"{name}: {side.model}" for name, side in sides.items()),
        *dict.fromkeys(f"{name.split('-')[0]}: {note}" for name, side in sides.items() for note in side.notes),
    ]


def loading_table(outcome: LoadingOutcome) -> Table:
    """Images a second on one core."""
    rows = [(name, *map(figure, (median(found), min(found), max(found)))) for name, found in outcome.sides.items()]
    return Table("Loading, images/s on one core", ("", "median", "least", "most"), tuple(rows))


def loading_lines(outcome: LoadingOutcome) -> list[str]:
    """Ours against torchvision's."""
    ratios = outcome.loading.ratios
    spread = f"({min(ratios):.2f} to {max(ratios):.2f} by round)"
    return [f"ours / torchvision: {outcome.ratio:.2f} times the images a second {spread}"]


def loading_notes(outcome: LoadingOutcome) -> list[str]:
    """How it was measured."""
    return [
        f"{len(outcome.loading.ours)} rounds in turn, in one process on one thread, behind one that does not count.",
        f"ours: DATA.name {outcome.source}, {outcome.images:,} images; crops of {outcome.crops}; batches as stored, "
        "which training normalises on its device.",
        f"torchvision: ImageFolder of {outcome.files}, RandomResizedCrop of 0.2 to 1 of the area (bicubic), "
        "RandomHorizontalFlip, ToTensor, Normalize, as MAE's main_pretrain.py.",
    ]


def kind_table(profiles: Iterable[Profile]) -> Table:
    """Milliseconds and share of a step by kind of work, a column a side."""
    profiles = list(profiles)
    rows = [
        (kind, *(_part(profile.kinds()[kind], profile.seconds) for profile in profiles)) for kind in profiles[0].kinds()
    ]
    whole = ("together", *(_part(profile.seconds, profile.seconds) for profile in profiles))
    busy = {"cpu": "of the CPU", "cuda": "of the GPU"}[profiles[0].of]
    title = f"Where a step goes: ms {busy}, under the profiler"
    return Table(title, ("", *(profile.side for profile in profiles)), (*rows, whole))


def operator_table(profile: Profile) -> Table:
    """The operators and kernels that take most."""
    rows = [
        (
            _short(operator.name),
            operator.kind,
            f"{operator.calls:,.0f}",
            figure(1000 * operator.seconds),
            f"{operator.seconds / profile.seconds:.1%}",
        )
        for operator in profile.operators[:TOP]
    ]
    return Table(f"Operators of {profile.side}", ("", "kind", "calls", "ms", "%"), tuple(rows), 2)


def figure(value: float) -> str:
    """Four digits, or as many as there are ahead of the point, of what is not negative."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if value >= 0.1 else f"{value:.3g}"


def _part(seconds: float, whole: float) -> str:
    return f"{figure(1000 * seconds)} {f'{seconds / whole:.0%}':>5}"


def _ratio(found: Ratio, at: str) -> str:
    return (
        f"ours / {found.against}{at}: {found.ratio:.2f} times the images a second "
        f"({found.low:.2f} to {found.high:.2f} by round)"
    )


def _all(outcome: Outcome) -> Iterable[Figures]:
    return (figures for found in outcome.tries for figures in found.figures)


def _words(outcome: Outcome) -> int:
    return 1 + (len(outcome.tries) > 1)


def _batch_head(outcome: Outcome) -> tuple[str, ...]:
    return ("batch",) if len(outcome.tries) > 1 else ()


def _batch(outcome: Outcome, batch: int) -> tuple[str, ...]:
    return (f"{batch:,}",) if len(outcome.tries) > 1 else ()


def _order(outcome: Outcome, row: tuple[str, ...]) -> int:
    return [f"{found.batch:,}" for found in outcome.tries].index(row[0]) if len(outcome.tries) > 1 else 0


def _short(name: str) -> str:
    name = name.replace("void ", "").replace("at::native::", "").replace("(anonymous namespace)::", "")
    return name if len(name) <= NAME else f"{name[: NAME - 13]}…{name[-12:]}"
