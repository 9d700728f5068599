"""Parity with transformers: its models with random weights, and the way of weights and gradients from there to ours.

Nothing is fetched: models come from configs and folders, and `forbid_network` makes any connection an error.

Shapes: B batch, C channels, H W pixels, h w patches high and wide, N patches, D width.
"""

import os
import socket
from collections.abc import Collection, Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import generator
from torch import Tensor, nn

from mim import MaskedImageModel, build_model
from mim.config import parse_config
from mim.convert import config_of, convert
from mim.engine import checkpoint
from mim.interop import ModelWeights, read

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-5}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCES), ids=["float64", "float32"])
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
POSITIONS = "encoder.backbone.pos_embed"


def forbid_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a test of parity wants to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def theirs_of(name: str, keys: Mapping[str, Any], seed: int = 3) -> nn.Module:
    """A model of theirs by the name of its class, in float32 and eval mode, with noise on every parameter: at first
    biases, tables and mask tokens are zero there, and would hide what is done to them.

    Fused attention where there is one: the other's softmax is in float32 whatever the model is in. With some seeds
    the gradient of a logit scale of Swin V2 cancels to so little that float32 itself misses it by 1e-5; not with this.
    """
    kind = getattr(transformers, name)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(kind.config_class(**NO_DROPOUT, **keys)).eval()
    assert model.config._attn_implementation == ("sdpa" if kind._supports_sdpa else "eager")
    return randomised(model, seed)


def randomised(model: nn.Module, seed: int) -> nn.Module:
    """The model with noise on every parameter, of a size that shows and saturates no softmax."""
    noise = generator(seed)
    with torch.no_grad():
        for weight in model.parameters():
            size = weight[0].numel() ** -0.5 if weight.ndim in (2, 4) else 0.3
            weight.add_(size * torch.randn(weight.shape, generator=noise))
    return model


def carried(theirs: nn.Module, folder: Path) -> ModelWeights:
    """Through a folder of theirs and our converter."""
    theirs.save_pretrained(folder)
    return read(folder, "transformers")


def ours_of(weights: ModelWeights, overrides: Iterable[str] = (), but: Collection[str] = ()) -> MaskedImageModel:
    """Our model with the weights of theirs, each of them in its place, none missing but those named."""
    model = build_model(config_of(weights, list(overrides))).eval()
    state = {name: weight for name, weight in weights.state.items() if name not in but}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert (set(missing), unexpected) == (set(but), [])
    return model


def carried_gradients(theirs: nn.Module, folder: Path) -> ModelWeights:
    """The gradients of a model of theirs under our names: each goes the way of its own parameter, zeros for a frozen
    one.
    """
    carrier = deepcopy(theirs)
    with torch.no_grad():
        for parameter, weight in zip(carrier.parameters(), theirs.parameters(), strict=True):
            assert (weight.grad is not None) == weight.requires_grad
            parameter.copy_(torch.zeros_like(weight) if weight.grad is None else weight.grad)
    return carried(carrier, folder)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Of every parameter that is trained."""
    return {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}


def assert_close(actual: Tensor, expected: Tensor, what: str) -> None:
    """To the tolerance of their dtype, of the largest value."""
    assert actual.dtype == expected.dtype, what
    scale = expected.abs().max().item()
    assert scale > 1e-5, f"{what} is zero throughout, which shows nothing"
    atol = TOLERANCES[expected.dtype] * scale
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol, msg=lambda text: f"{what}: {text}")


def assert_all_close(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """The same names, and each close."""
    assert {*actual} == {*expected}
    for name in expected:
        assert_close(actual[name], expected[name], name)


def random_checkpoint(text: str, path: Path, seed: int = 1) -> tuple[MaskedImageModel, Path]:
    """A model of a config, with random weights, and the checkpoint of it that a run would leave."""
    cfg = parse_config(text)
    model = randomised(build_model(cfg), seed).eval()
    checkpoint.write(path, {"step": 1, "model": model.state_dict(), "ema": {}, "config": cfg.to_yaml()})
    return model, path


def exported(source: Path, folder: Path, name: str, **keys: Any) -> nn.Module:
    """A file of ours as the model of theirs that it is loaded by, which must lack nothing and have nothing left."""
    convert(source, folder, "transformers")
    model, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True, **keys)
    assert not any(info.values()), info
    return model.eval()
