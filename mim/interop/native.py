"""mim: checkpoints of this toolkit."""

from pathlib import Path

import torch

from mim.interop import metadata
from mim.interop.files import WeightsFile, tensors
from mim.interop.formats import ModelWeights, WeightsFormat, WriteReport
from mim.io.files import write_atomically
from mim.io.weights import CHECKPOINT_FORMAT, CLASSES, DERIVED_BUFFERS, rename_classifier

AVERAGE = "module."  # the prefix of a moving average's names


class Native(WeightsFormat, name="mim"):
    """Reads the moving average where the run kept one, because evaluations use it."""

    def recognises(self, file: WeightsFile) -> bool:
        return file.metadata.get("format") == CHECKPOINT_FORMAT

    def infers_config(self, file: WeightsFile) -> bool:
        return False

    def read(self, file: WeightsFile) -> ModelWeights:
        if not self.recognises(file):
            raise ValueError(f"it lacks the mark of this toolkit's checkpoints, {CHECKPOINT_FORMAT!r}")
        average = {
            name.removeprefix(AVERAGE): weight
            for name, weight in tensors(file.metadata.get("ema")).items()
            if name.startswith(AVERAGE) and not name.endswith(DERIVED_BUFFERS)
        }
        config = file.metadata.get("config")
        sections, plugins = metadata.parse_sections(config), metadata.parse_plugins(config)
        unspecified = () if "ENCODER" in sections else ("ENCODER.name",)
        state = rename_classifier(average or file.weights)
        return ModelWeights(state, sections, str(file.path), unspecified, averaged=bool(average), plugins=plugins)

    def write(self, weights: ModelWeights, path: Path) -> WriteReport:
        content = {"format": CHECKPOINT_FORMAT, "step": 0, "model": weights.state, "ema": {}}
        content |= {"config": metadata.to_yaml(weights.sections), **metadata.origin(weights)}
        content |= {CLASSES: list(weights.classes)} if weights.classes else {}
        write_atomically(path, lambda file: torch.save(content, file))
        return WriteReport(usage=f"INIT.checkpoint {path}, or mim.load_encoder({str(path)!r})")
