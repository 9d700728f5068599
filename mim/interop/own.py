"""mim: checkpoints of this toolkit."""

from pathlib import Path

import torch

from mim.interop import metadata
from mim.interop.files import Stored, tensors
from mim.interop.formats import Format, Weights, Written
from mim.io.files import write_whole
from mim.io.weights import DERIVED, OWN

AVERAGE = "module."  # before every name of a moving average


class Own(Format, name="mim"):
    """The moving average is read where the run kept one, since evaluations used it."""

    def recognises(self, stored: Stored) -> bool:
        return stored.beside.get("format") == OWN

    def read(self, stored: Stored) -> Weights:
        if not self.recognises(stored):
            raise ValueError(f"it lacks the mark of this toolkit's checkpoints, {OWN!r}")
        average = {
            name.removeprefix(AVERAGE): held
            for name, held in tensors(stored.beside.get("ema")).items()
            if name.startswith(AVERAGE) and not name.endswith(DERIVED)
        }
        sections = metadata.sections_of(stored.beside.get("config"))
        untold = () if "ENCODER" in sections else ("ENCODER.name",)
        return Weights(average or dict(stored.weights), sections, str(stored.path), untold, averaged=bool(average))

    def write(self, weights: Weights, path: Path) -> Written:
        content = {
            "format": OWN,
            "step": 0,
            "model": weights.state,
            "ema": {},
            "config": metadata.as_yaml(weights.sections),
            **metadata.origin(weights),
        }
        write_whole(path, lambda file: torch.save(content, file))
        return Written(use=f"INIT.checkpoint {path}, or mim.load_encoder({str(path)!r})")
