"""The table of surveyed models: as a CSV file that grows row by row, and as a page."""

import csv
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from mim.lab.backbones.survey import RATIO, WAYS, Backbone
from mim.structures import ImageSpec

COLUMNS = ("model", "module", "channels", "height", "width", "strides", "parameters", "flops", *WAYS)
INTRODUCTION = """# Backbones

What every architecture of timm {version} can do as `ENCODER: {{name: timm, model: ...}}`. This page is made by
`python tools/backbones.py --page docs/backbones.md --rows docs/backbones.csv`, on PyTorch's meta device: each model was
built without weights, hid {hidden:.0%} of the cells of two images and ran forward.

- **{usable:,} of {total:,}** models can be pretrained in at least one way: **{drop:,}** can `drop`, **{sparse:,}** can
  be `sparse`, all of them can `replace`.
- A percentage is what the encoder's forward pass costs under the mask, as a share of that of whole images: products of
  matrices, convolutions and attention.
- `drop` leaves the tokens of hidden cells out. `sparse` computes a convolutional net on visible places alone; its
  convolutions of neighbours still run over the whole map. `replace` puts a learned token in the place of what is
  hidden.
- A number is the reason why a way does not work, below the table of its module.

`python tools/backbones.py NAME ...` tells the same of the models that you name.
"""


def read_rows(path: Path) -> dict[str, Backbone]:
    """The models of a CSV file by name; none where there is no file."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {row["model"]: _backbone(row) for row in csv.DictReader(file)}


def append_row(path: Path, backbone: Backbone) -> None:
    """Adds a model to a CSV file. A row is written whole, so that an interrupted survey goes on from there."""
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(COLUMNS)
        writer.writerow(_cells(backbone))


def page(backbones: Sequence[Backbone], version: str) -> str:
    """The page, a section for each module of timm."""
    counts = Counter(way for each in backbones for way in each.shares)
    text = INTRODUCTION.format(
        version=version,
        hidden=RATIO,
        usable=sum(bool(each.shares) for each in backbones),
        total=len(backbones),
        drop=counts["drop"],
        sparse=counts["sparse"],
    )
    modules: dict[str, list[Backbone]] = defaultdict(list)
    for each in backbones:
        modules[each.module].append(each)
    return text + "".join(_section(name, modules[name]) for name in sorted(modules))


def lines(backbone: Backbone) -> list[str]:
    """What a model can do, for a terminal."""
    if backbone.image is None:
        return [f"{backbone.model}: {backbone.reasons['replace']}"]
    image = backbone.image
    facts = (
        f"{backbone.model}: {image.height} x {image.width} px, strides {_strides(backbone)}, "
        f"{backbone.parameters / 1e6:.1f} M parameters, {backbone.flops / 1e9:.2f} GFLOP an image"
    )
    ways = [
        f"  {way:8}{backbone.shares[way]:.0%} of these operations with {RATIO:.0%} hidden"
        if way in backbone.shares
        else f"  {way:8}no: {reason}"
        for way, reason in ((way, backbone.reasons.get(way, "")) for way in WAYS)
    ]
    return [facts, *ways]


def _section(module: str, backbones: Iterable[Backbone]) -> str:
    reasons: list[str] = []
    rows = []
    for each in sorted(backbones, key=lambda each: each.model):
        cells = []
        for way in WAYS:
            if way in each.shares:
                cells.append(f"{each.shares[way]:.0%}")
                continue
            if each.reasons[way] not in reasons:
                reasons.append(each.reasons[way])
            cells.append(f"[{reasons.index(each.reasons[way]) + 1}]")
        size = "" if each.image is None else f"{each.image.height}"
        numbers = f"{size} | {_strides(each)} | {each.parameters / 1e6:.1f} | {each.flops / 1e9:.2f}"
        rows.append(f"| {each.model} | {' | '.join(cells)} | {numbers} |\n")
    head = f"| model | {' | '.join(WAYS)} | image, px | strides, px | parameters, M | GFLOP |\n"
    notes = "".join(f"\n{number}. {reason}" for number, reason in enumerate(reasons, 1))
    return f"\n## {module}\n\n{head}|---|---|---|---|---|---|---|---|\n{''.join(rows)}{notes}\n"


def _strides(backbone: Backbone) -> str:
    return ", ".join(map(str, backbone.strides))


def _cells(backbone: Backbone) -> list[str]:
    image = backbone.image
    size = ["", "", ""] if image is None else [str(image.channels), str(image.height), str(image.width)]
    numbers = [str(backbone.parameters), str(backbone.flops)]
    ways = [f"{backbone.shares[way]:.4f}" if way in backbone.shares else backbone.reasons[way] for way in WAYS]
    return [backbone.model, backbone.module, *size, " ".join(map(str, backbone.strides)), *numbers, *ways]


def _backbone(row: dict[str, str]) -> Backbone:
    is_share = {way: row[way].replace(".", "", 1).isdigit() for way in WAYS}
    return Backbone(
        row["model"],
        row["module"],
        ImageSpec(int(row["channels"]), int(row["height"]), int(row["width"])) if row["height"] else None,
        tuple(map(int, row["strides"].split())),
        int(row["parameters"]),
        int(row["flops"]),
        {way: float(row[way]) for way in WAYS if is_share[way]},
        {way: row[way] for way in WAYS if not is_share[way]},
    )
