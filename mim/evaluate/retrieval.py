"""Retrieval: the images that are nearest to others by features of a frozen encoder, counted and as a sheet.

Every image is read once, on one process or under torchrun. Shapes: N queries, k neighbours, H W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mim import build
from mim.config import Overrides
from mim.data.sources.base import Source
from mim.data.sources.classes import class_labels
from mim.data.sources.files import Files
from mim.data.sources.label_check import label_problem
from mim.data.transforms import to_unit
from mim.evaluate.encoder import SplitFeatures, split_features
from mim.evaluate.loading import LoadedCheckpoint, load, origin, title
from mim.evaluation.reading import choose_samples, left_out_metrics
from mim.evaluation.retrieval import Neighbours, has_faiss, neighbours, retrieval_scores
from mim.metric_keys import RETRIEVAL_MAP, RETRIEVAL_RECALL, at_k, interval
from mim.pictures.channels import Channels, view_of
from mim.pictures.files import write_picture
from mim.pictures.retrieval import ShownNeighbour, draw_neighbours
from mim.structures import Pool

RECALLS = (1, 5, 10)  # numbers of neighbours for which recall is given, and the number that was asked for
WIDEST, QUERIES, MOST = 10, 8, 100  # neighbours on a sheet; queries by default and at most
SHEET = "neighbours.png"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalSettings:
    """What is searched and shown.

    Args:
        pool: features of an image.
        k: nearest images.
        leave_one_out: whether the held-out images (where there are none, the training images) search each other.
        images: queries on the sheet; None: 8, or all that are named; 0: no sheet.
        channels: of view_of.
        seed: of the choice of queries on the sheet.
    """

    pool: Pool = "mean"
    k: int = 10
    leave_one_out: bool = False
    images: int | None = None
    channels: Channels = ()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Search:
    """Images that are searched, queries, and what was found."""

    bank_source: Source
    bank: SplitFeatures
    query_source: Source
    queries: SplitFeatures
    near: Neighbours
    no_classes: str  # why queries and images have no classes to compare; empty where they have

    @property
    def own(self) -> bool:
        """Whether the queries are the images that are searched."""
        return self.bank is self.queries


def retrieval(
    run: Path, images: Sequence[Path], output: Path, overrides: Overrides, settings: RetrievalSettings
) -> dict[str, Any]:
    """The nearest images of each query: mAP@k and recall@k where classes are known, and a sheet in `output`.

    Queries are the held-out images, and training images are searched.

    Args:
        run: a run folder or checkpoint.
        images: files, folders and lists that are the queries instead, see Files.
        output: the folder of the sheet.
        overrides: config keys.
        settings: what is searched and shown.

    Raises ValueError where there are no images to search or to search for, and where a setting is out of range.
    """
    if settings.k < 1:
        raise ValueError(f"--k is {settings.k}: at least 1 neighbour")
    if images and settings.leave_one_out:
        raise ValueError("IMAGES and --leave-one-out both say what is searched for: name one of them")
    with load(run, overrides) as loaded:
        search = _search(loaded, images, settings)
        k = search.near.rows_Nk.shape[1]
        metrics: dict[str, Any] = {
            **origin(loaded),
            "queries": len(search.queries.names),
            "searched images": len(search.bank.names),
            **left_out_metrics(search.bank.broken | search.queries.broken),
            "pool": settings.pool,
            "k": k,
            "search": "faiss" if has_faiss() else "PyTorch",
            **({"no mAP": search.no_classes} if search.no_classes else _scores(search, k)),
        }
        sheet = _sheet(loaded, search, bool(images), settings)
        if sheet is not None:
            path = output / SHEET
            if loaded.world.main:
                write_picture(path, sheet)
            metrics["pictures"] = [str(path)]
        return metrics


def _search(loaded: LoadedCheckpoint, images: Sequence[Path], settings: RetrievalSettings) -> _Search:
    train, held_out = loaded.sources()
    name = f"DATA.name {loaded.cfg.DATA.name}"
    if settings.leave_one_out:
        source = held_out if len(held_out) else train
        if len(source) < 2:
            raise ValueError(f"{name} has {len(source)} images that could search each other: name others by DATA.path")
        bank = queries = split_features(loaded, source, settings.pool)
        query_source = source
    else:
        query_source = Files(images, loaded.cfg.DATA.shared) if images else held_out
        source = train
        if not len(query_source):
            raise ValueError(
                f"{name} has no held-out images to search for: name IMAGES, or let the training images search each "
                "other with --leave-one-out"
            )
        bank, queries = (split_features(loaded, each, settings.pool) for each in (train, query_source))
    if settings.leave_one_out and len(bank.names) < 2:
        raise ValueError(f"{name} has {len(bank.names)} image that can be read: at least 2 can search each other")
    near = neighbours(bank.features_ND, queries.features_ND, settings.k, own=settings.leave_one_out)
    return _Search(source, bank, query_source, queries, near, _no_classes(train, source, query_source))


def _no_classes(train: Source, *sources: Source) -> str:
    """Why one of these has no class for each image; empty where all have."""
    for source in sources:
        if class_labels(source) is None:
            if isinstance(source, Files):
                return "IMAGES have no classes"
            return f"the {'training' if source.split == 'train' else 'held-out'} images have no classes"
    return label_problem(train, sources[-1])


def _scores(search: _Search, k: int) -> dict[str, Any]:
    classes_Nk = search.bank.labels_N[search.near.rows_Nk]
    ks = sorted({each for each in (*RECALLS, k) if each <= k})
    scores = retrieval_scores(classes_Nk, search.queries.labels_N, search.bank.labels_N, ks, search.own)
    left_out = len(search.queries.names) - scores.queries
    keys = {"map": at_k(RETRIEVAL_MAP, k), **{str(each): at_k(RETRIEVAL_RECALL, each) for each in ks}}
    return {
        **({"queries without another image of their class": left_out} if left_out else {}),
        keys["map"]: scores.mean_precision,
        **{keys[str(each)]: share for each, share in scores.recall.items()},
        **{interval(keys[name]): list(ends) for name, ends in scores.intervals.items()},
    }


def _sheet(loaded: LoadedCheckpoint, search: _Search, named: bool, settings: RetrievalSettings) -> Tensor | None:
    """The sheet; None where there is nothing to show."""
    queries, near = search.queries, search.near
    count = settings.images
    if count is None:
        count = len(queries.names) if named else QUERIES
    if not 0 <= min(count, len(queries.names)) <= MOST:
        raise ValueError(f"{count} queries on a sheet: it holds 0 to {MOST}, see --images")
    if not count:
        return None
    chosen = list(range(len(queries.names)))[:count]
    if not named:
        chosen = choose_samples(len(queries.names), count, settings.seed)
    shown_k = min(WIDEST, near.rows_Nk.shape[1])
    bank_rows = [search.bank.rows[row] for query in chosen for row in near.rows_Nk[query, :shown_k].tolist()]
    pictures, note = _pictures(
        loaded,
        [(search.query_source, [queries.rows[query] for query in chosen]), (search.bank_source, bank_rows)],
        settings.channels,
    )
    rows = []
    for number, query in enumerate(chosen):
        own_pictures = pictures[len(chosen) + number * shown_k :][:shown_k]
        rows.append([_query(search, query, pictures[number]), *_neighbours_of(search, query, own_pictures)])
    notes = ["Below each image: its class or its name, and its distance (1 - cosine similarity) from the query."]
    if not search.no_classes:
        notes.append("Green: the class of the query. Red: another class.")
    return draw_neighbours(rows, f"{title(loaded)}: nearest images", [*notes, *([f"{note}."] if note else [])])


def _query(search: _Search, query: int, rgb_HW3: np.ndarray) -> ShownNeighbour:
    return ShownNeighbour(rgb_HW3, _label(search.queries, query))


def _neighbours_of(search: _Search, query: int, pictures: Sequence[np.ndarray]) -> list[ShownNeighbour]:
    neighbours, near = [], search.near
    own_class = int(search.queries.labels_N[query]) if not search.no_classes else -1
    for position, rgb_HW3 in enumerate(pictures):
        row = int(near.rows_Nk[query, position])
        right = int(search.bank.labels_N[row]) == own_class if own_class >= 0 else None
        label, distance = _label(search.bank, row), 1 - float(near.similarity_Nk[query, position])
        neighbours.append(ShownNeighbour(rgb_HW3, f"{label} \N{MIDDLE DOT} {distance:.2g}", right))
    return neighbours


def _label(features: SplitFeatures, row: int) -> str:
    """The class of an image, or its name where it has none."""
    number = int(features.labels_N[row]) if features.labels_N.ndim == 1 else -1
    return features.classes[number] if number >= 0 else Path(features.names[row]).name


def _pictures(
    loaded: LoadedCheckpoint, rows_of: Sequence[tuple[Source, list[int]]], channels: Channels
) -> tuple[list[np.ndarray], str]:
    """Images of sources, (H, W, 3) uint8, in the order of their rows, and what must be said of their colours."""
    images = []
    for source, rows in rows_of:
        data = build.evaluation_data(loaded.cfg, source, masks=False)
        unique = list(dict.fromkeys(rows))
        batch = data.readable([(0, row) for row in unique], mixed=True)
        image_of = dict(zip(batch.indices, batch.images_BCHW, strict=True))
        images += [image_of[row] for row in rows]
    eight_bit = all(image.dtype == torch.uint8 for image in images)
    images_BCHW = torch.stack([to_unit(image) for image in images])
    view = view_of(images_BCHW, eight_bit, channels)
    return list((view(images_BCHW) * 255).round().to(torch.uint8).numpy()), view.note
