"""Names of classes in files of weights: in checkpoints, beside converted weights, as id2label of transformers."""

import json
from typing import Any

from torch import Tensor

from mim.interop.files import WeightsFile
from mim.io.weights import CLASSES, stored_classes

KEY = "mim_classes"  # holds the names, as JSON, beside the weights in the formats of other code bases
BIAS = "readouts.0.linear.bias"  # of the classifier, under our names


def read_classes(file: WeightsFile, state: dict[str, Tensor]) -> tuple[str, ...]:
    """The names in a file whose weights, under our names, are `state`; empty where it has none for its classifier."""
    count = len(state[BIAS]) if BIAS in state else 0
    labels = file.metadata.get("id2label")
    if isinstance(labels, dict):
        names = [labels.get(str(number), labels.get(number)) for number in range(count)]
        return () if names == placeholders(count) else stored_classes(names, count)
    return stored_classes(file.metadata.get(CLASSES), count) or stored_classes(_parse(file.metadata.get(KEY)), count)


def label_maps(classes: tuple[str, ...], count: int) -> dict[str, Any]:
    """id2label and label2id of config.json; names as transformers makes them where there are none, or some repeat."""
    names = list(classes) if len(set(classes)) == count else placeholders(count)
    return {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }


def placeholders(count: int) -> list[str]:
    """LABEL_0, LABEL_1, ..."""
    return [f"LABEL_{number}" for number in range(count)]


def _parse(text: Any) -> Any:
    try:
        return json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None
