"""Stored: a file, or a folder, of weights as it was read, whatever its format."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.models import clean_state_dict
from torch import Tensor

from mim.io.limits import JSON_BYTES
from mim.io.weights import DERIVED_BUFFERS, check_weights, read_safetensors, read_weights

HOLDERS = ("state_dict_ema", "model_ema", "model", "state_dict", "module")  # as timm prefers them
CONFIG = "config.json"


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """weights: under the file's names, without what is derived from settings; holder: the key they stood under.

    beside: what else stood in the file, or of a folder the content of config.json.
    """

    path: Path
    weights: dict[str, Tensor]
    beside: dict[str, Any]
    holder: str = ""

    def below(self, prefix: str) -> dict[str, Tensor]:
        """The weights below a prefix, which is taken off."""
        return {name.removeprefix(prefix): held for name, held in self.weights.items() if name.startswith(prefix)}


def is_pretrained_folder(path: Path) -> bool:
    """Whether a folder is one that `save_pretrained` of transformers writes."""
    try:
        return (path / CONFIG).is_file()
    except OSError:  # a name too long, a link to itself
        return False


def read_stored(path: Path, called: str) -> WeightsFile:
    """A PyTorch file, a .safetensors file or a folder with config.json.

    Raises ValueError, naming the file as `called`, where it is missing, damaged or holds more than plain values.
    """
    stored, size = _read(path, called)
    try:
        check_weights({**stored.weights, **tensors(stored.beside.get("ema"))}, size)
    except ValueError as error:
        raise ValueError(f"{called} {path}: {error}") from error
    return stored


def tensors(held: Any) -> dict[str, Tensor]:
    """The tensors that stand in a mapping by name; none where it is no mapping."""
    pairs = held.items() if isinstance(held, dict) else ()
    return {name: value for name, value in pairs if isinstance(name, str) and isinstance(value, Tensor)}


def _read(path: Path, called: str) -> tuple[WeightsFile, int]:
    """What is stored, and the size of its files in bytes."""
    if is_pretrained_folder(path):
        return _read_folder(path, called)
    if path.suffix == ".safetensors":
        weights, texts = read_safetensors(path, called)
        return WeightsFile(path, _plain(weights), dict(texts)), path.stat().st_size
    content = read_weights(path, called)
    content = content if isinstance(content, dict) else {}
    holder = next((key for key in HOLDERS if isinstance(content.get(key), dict) and _plain(content[key])), "")
    weights = _plain(content[holder] if holder else content)
    beside = {key: _fields(value) for key, value in content.items() if key != holder and isinstance(key, str)}
    return WeightsFile(path, weights, beside if holder else {}, holder), path.stat().st_size


def _plain(held: Any) -> dict[str, Tensor]:
    """The weights of a mapping, without the prefixes of DDP and torch.compile and without what a model derives anew."""
    found = {name: value for name, value in tensors(held).items() if not name.endswith(DERIVED_BUFFERS)}
    return clean_state_dict(clean_state_dict(found))  # older releases of timm know one order of the two wrappers


def _fields(value: Any) -> Any:
    return vars(value) if isinstance(value, argparse.Namespace) else value


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises ValueError where it is none or too large, OSError where it cannot be read."""
    if path.stat().st_size > JSON_BYTES:
        raise ValueError(f"{path.name} has more than {JSON_BYTES:,} bytes")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{path.name} nests too deeply") from error


def _read_folder(path: Path, called: str) -> tuple[WeightsFile, int]:
    try:
        config = read_json(path / CONFIG)
        index = path / "model.safetensors.index.json"
        files = ["model.safetensors"]
        if index.is_file() and not (path / files[0]).is_file():  # in shards
            files = sorted(set(read_json(index)["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{called} {path}: its JSON cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{called} {path / CONFIG} must hold a mapping, not {type(config).__name__}")
    weights: dict[str, Tensor] = {}
    size = 0
    for name in files:
        inside = path / Path(str(name)).name  # an index names files of its own folder
        weights.update(read_safetensors(inside, called)[0])
        size += inside.stat().st_size
    return WeightsFile(path, _plain(weights), config), size
