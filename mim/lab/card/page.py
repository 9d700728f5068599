"""The text of a card: facts and figures of a run in the template templates/card.md."""

from collections.abc import Sequence
from dataclasses import dataclass

from huggingface_hub import ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from mim.lab.card.facts import Facts, Rows
from mim.lab.card.figures import Figures

LIBRARY = "mim-toolkit"
CELL_SIGNS = {"|": r"\|", "<": "&lt;", "\n": " "}


@dataclass(frozen=True, slots=True)
class Place:
    """Where the encoder is, and how it loads there."""

    name: str  # of the folder, or owner/name of a repository
    is_repository: bool = False
    revision: str = ""
    obstacle: str = ""  # why timm cannot load it; empty where it can

    @property
    def for_mim(self) -> str:
        return f"hf://{self._revised}" if self.is_repository else self.name

    @property
    def for_timm(self) -> str:
        return f"hf-hub:{self._revised}" if self.is_repository else f"local-dir:{self.name}"

    @property
    def _revised(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name


def card_text(facts: Facts, figures: Figures, place: Place, license_name: str, curves: bool, picture: str) -> str:
    """The model card as Markdown with its front matter.

    Args:
        license_name: an identifier of a licence; empty where none was named.
        curves: whether curves.png lies beside it.
        picture: the name of the picture of held-out images beside it; empty where there is none.
    """
    environment = Environment(
        loader=PackageLoader("mim.lab.card", "templates"),
        autoescape=False,  # noqa: S701  Markdown; cells are escaped by table_text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    data = facts.cfg.DATA
    return environment.get_template("card.md").render(
        front_matter=_front_matter(facts, figures, place, license_name),
        title=place.name.rpartition("/")[2],
        what=_what(facts),
        table=table_text,
        data=facts.data(),
        recipe=facts.recipe(),
        scores=facts.scores(),
        held_out=facts.summary.get("val/samples", facts.images[1]),
        figures=figures.table,
        seeds_line=_seeds_line(figures),
        curves=curves,
        picture=picture,
        place=place.for_mim,
        timm_place=place.for_timm,
        obstacle=place.obstacle,
        mean=list(data.mean),
        std=list(data.std),
        shape=f"{data.channels}, {data.image_size[0]}, {data.image_size[1]}",
        larger=[2 * side for side in data.image_size],
        values="values from 0 to 1" if data.scale == "type" else "prepared as under Data, pixel values",
        limits=limits_of(facts, figures, license_name),
    )


def table_text(rows: Rows) -> str:
    """Names and texts as a table in Markdown, without a heading."""
    lines = [f"| {name} | {_cell(text)} |" for name, text in rows]
    return "\n".join(["| | |", "|---|---|", *lines])


def limits_of(facts: Facts, figures: Figures, license_name: str) -> list[str]:
    """What the model is not for, as far as the run folder shows it."""
    data = facts.cfg.DATA
    height, width = data.image_size
    begin = "It was trained on" if not facts.cfg.INIT.checkpoint else "Its last training was on"
    lines = [
        f"Other images: {begin} {facts.count} of `{facts.dataset}` alone. How it does on images of another kind is "
        "unknown.",
        f"Other channels: it takes images with {data.channels} channel{'s' * (data.channels > 1)}, normalised by the "
        "mean and standard deviation above.",
        f"Other sizes: {height} x {width} pixels is the only size that it was trained and evaluated at.",
        "Answers: it has no readout, so it gives features and no classes. A decision needs a probe or a fine-tuning, "
        "and an evaluation of that.",
    ]
    if data.scale != "type":
        lines.append("Pixel values as they are stored: they are scaled as under Data first, which timm does not do.")
    if not figures.table and not facts.scores():
        lines.append("Any use for which its quality matters: no evaluation is recorded.")
    elif figures.seeds == 1:
        lines.append("Conclusions about the recipe: there is one seed, so its figures have no interval over seeds.")
    if not license_name:
        lines.append("Use under a licence that you assume: none was named for these weights.")
    return [*lines, *figures.evidence, *facts.warnings()]


def _what(facts: Facts) -> str:
    cfg = facts.cfg
    encoder = f"`{cfg.ENCODER.values().get('model') or cfg.ENCODER.name}`"
    if cfg.TASK == "pretrain":
        way = f"pretrained by masked image modeling on {facts.count} of `{facts.dataset}`"
        return f"An image encoder, {encoder}, {way}."
    task = {"finetune": "fine-tuning", "probe": "probe"}.get(cfg.TASK, cfg.TASK)
    return f"The image encoder, {encoder}, of a {task} on `{facts.dataset}`, without its readout."


def _seeds_line(figures: Figures) -> str:
    if figures.seeds > 1:
        return f"Over {figures.seeds} seeds of this recipe, of which this folder holds one:"
    return "Of this run alone, so without intervals over seeds:"


def _front_matter(facts: Facts, figures: Figures, place: Place, license_name: str) -> str:
    cfg = facts.cfg
    tags: Sequence[str] = (LIBRARY, "masked-image-modeling", cfg.ENCODER.name, *(["timm"] * (not place.obstacle)))
    from_hub = cfg.DATA.name == "huggingface" and cfg.DATA.path.count("/") == 1 and not cfg.DATA.path.startswith(".")
    name = place.name.rpartition("/")[2]
    return ModelCardData(
        library_name=LIBRARY if place.obstacle else "timm",
        license=license_name or None,
        tags=list(dict.fromkeys(tags)),
        pipeline_tag="image-feature-extraction",
        datasets=[cfg.DATA.path] if from_hub else None,
        model_name=name if figures.results else None,
        eval_results=list(figures.results) or None,
    ).to_yaml()


def _cell(text: str) -> str:
    for sign, escaped in CELL_SIGNS.items():
        text = text.replace(sign, escaped)
    return text
