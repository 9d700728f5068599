"""EvaluationResult: the values of an evaluation of a checkpoint, and the pictures that it wrote."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mim.results.card import Card, CardPicture, CardTable
from mim.results.figures import figure_rows, value_text

PICTURES = "pictures"  # the key of the paths
SHOWN = 4  # metrics in the short text


class EvaluationResult(dict[str, Any]):
    """What `mim.evaluate` returns: a dict of the values by name, with intervals. A notebook shows them as a table.

    Attributes: what, the kind of the evaluation, such as `knn`.
    """

    def __init__(self, what: str, values: Mapping[str, Any]):
        super().__init__(values)
        self.what = what

    @property
    def checkpoint(self) -> str:
        """The file, and whether its moving average was evaluated."""
        return str(self.get("checkpoint", ""))

    @property
    def pictures(self) -> list[Path]:
        """The files that it wrote, of those that have some."""
        return [Path(path) for path in self.get(PICTURES, ())]

    def __repr__(self) -> str:
        metrics = [name for name, value in self.items() if "/" in name and isinstance(value, float)]
        texts = (f"{name} {value_text(name, self[name])}" for name in metrics[:SHOWN])
        return f"<{type(self).__name__} {', '.join([f'{self.what} of {self.checkpoint}', *texts])}>"

    def _repr_html_(self) -> str:
        values = {name: value for name, value in self.items() if name != "checkpoint"}
        pictures = tuple(CardPicture.of_file(path, str(path)) for path in self.pictures if path.is_file())
        table = CardTable(figure_rows(values))
        return Card(self.what, self.checkpoint, tables=(table,), pictures=pictures).html()
