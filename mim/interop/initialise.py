"""INIT.checkpoint: the encoder starts from weights of an earlier run."""

from dataclasses import dataclass
from pathlib import Path

import torch

from mim.encoders import Encoder
from mim.ops.weights import read_weights

LEAST_SHARE = 0.5
PREFIX = "encoder."


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What became of each weight, by name."""

    source: Path
    loaded: list[str]
    missing: list[str]
    unexpected: list[str]
    reshaped: list[str]

    def lines(self) -> list[str]:
        """The report for a person: counts, then every name that was not loaded."""
        found = [f"{self.source}: {len(self.loaded)} encoder weights loaded"]
        for what, names in (
            ("missing in the file, kept as initialised", self.missing),
            ("in the file only, left out", self.unexpected),
            ("of another shape, left out", self.reshaped),
        ):
            if names:
                found.append(f"  {what}: {', '.join(names)}")
        return found


def initialise_encoder(encoder: Encoder, path: Path) -> LoadReport:
    """Copies the encoder weights of a checkpoint of this toolkit; heads are left out.

    Raises ValueError where the file is missing or of another kind, or holds less than half of the encoder's weights
    in their shapes; the encoder is then unchanged.
    """
    state = _encoder_state(path)
    own = encoder.state_dict()
    fitting = {name for name in own if name in state and own[name].shape == state[name].shape}
    report = LoadReport(
        path,
        loaded=sorted(fitting),
        missing=[name for name in own if name not in state],
        unexpected=[name for name in state if name not in own],
        reshaped=[
            f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
            for name in own
            if name in state and name not in fitting
        ],
    )
    share = sum(own[name].numel() for name in fitting) / sum(weight.numel() for weight in own.values())
    if share < LEAST_SHARE:
        details = "\n".join(report.lines()[1:])[:2000]
        raise ValueError(
            f"INIT.checkpoint {path} holds another encoder: only {share:.0%} of this one's weights are in it, and at "
            f"least {LEAST_SHARE:.0%} must be\n{details}"
        )
    encoder.load_state_dict({name: state[name] for name in fitting}, strict=False)
    return report


def _encoder_state(path: Path) -> dict[str, torch.Tensor]:
    content = read_weights(path, "INIT.checkpoint")
    weights = content.get("model") if isinstance(content, dict) else None
    weights = weights if isinstance(weights, dict) else {}
    state = {name.removeprefix(PREFIX): weight for name, weight in weights.items() if name.startswith(PREFIX)}
    if not state:
        raise ValueError(f"INIT.checkpoint {path} holds no encoder: it is not a checkpoint of this toolkit")
    return state
