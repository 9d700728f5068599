"""mim: checkpoints of this toolkit."""

from pathlib import Path

import torch

from mim.interop import metadata
from mim.interop.files import WeightsFile, tensors
from mim.interop.formats import ModelWeights, WeightsFormat, WriteReport
from mim.io.files import write_atomically
from mim.io.weights import CHECKPOINT_FORMAT, DERIVED_BUFFERS

AVERAGE = "module."  # before every name of a moving average


class Native(WeightsFormat, name="mim"):
    """The moving average is read where the run kept one, since evaluations used it."""

    def recognises(self, stored: WeightsFile) -> bool:
        return stored.beside.get("format") == CHECKPOINT_FORMAT

    def read(self, stored: WeightsFile) -> ModelWeights:
        if not self.recognises(stored):
            raise ValueError(f"it lacks the mark of this toolkit's checkpoints, {CHECKPOINT_FORMAT!r}")
        average = {
            name.removeprefix(AVERAGE): held
            for name, held in tensors(stored.beside.get("ema")).items()
            if name.startswith(AVERAGE) and not name.endswith(DERIVED_BUFFERS)
        }
        sections = metadata.sections_of(stored.beside.get("config"))
        unspecified = () if "ENCODER" in sections else ("ENCODER.name",)
        return ModelWeights(
            average or dict(stored.weights), sections, str(stored.path), unspecified, averaged=bool(average)
        )

    def write(self, weights: ModelWeights, path: Path) -> WriteReport:
        content = {
            "format": CHECKPOINT_FORMAT,
            "step": 0,
            "model": weights.state,
            "ema": {},
            "config": metadata.as_yaml(weights.sections),
            **metadata.origin(weights),
        }
        write_atomically(path, lambda file: torch.save(content, file))
        return WriteReport(use=f"INIT.checkpoint {path}, or mim.load_encoder({str(path)!r})")
