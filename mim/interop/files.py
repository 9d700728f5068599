"""WeightsFile: the content of a file, or a folder, of weights, whatever its format."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.models import clean_state_dict
from torch import Tensor

from mim.io.limits import JSON_BYTES
from mim.io.weights import DERIVED_BUFFERS, check_weights, read_safetensors, read_weights

CONTAINERS = ("state_dict_ema", "model_ema", "model", "state_dict", "module")  # in timm's order of preference
CONFIG = "config.json"


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """The content of a file, or a folder, of weights."""

    path: Path
    weights: dict[str, Tensor]  # under the file's names, without buffers that a model computes when it is built
    metadata: dict[str, Any]  # everything else in the file; of a folder, the content of config.json
    container: str = ""  # the key of the mapping that held the weights; empty where they were the whole file

    def strip_prefix(self, prefix: str) -> dict[str, Tensor]:
        """The weights whose names start with a prefix, without it."""
        return {name.removeprefix(prefix): weight for name, weight in self.weights.items() if name.startswith(prefix)}


def is_pretrained_folder(path: Path) -> bool:
    """Whether a path is a folder that `save_pretrained` of transformers wrote."""
    try:
        return (path / CONFIG).is_file()
    except OSError:  # a name that is too long, a link to itself
        return False


def read_weights_file(path: Path, role: str, lazy: bool = False) -> WeightsFile:
    """Reads a PyTorch file, a .safetensors file or a folder with config.json; lazy: see read_weights.

    Raises ValueError, calling the file by its `role`, where it is missing or damaged, or holds more than plain values.
    """
    file, size = _read(path, role, lazy)
    try:
        check_weights({**file.weights, **tensors(file.metadata.get("ema"))}, size)
    except ValueError as error:
        raise ValueError(f"{role} {path}: {error}") from error
    return file


def tensors(content: Any) -> dict[str, Tensor]:
    """The tensors of a mapping, by name; none where `content` is not a mapping."""
    pairs = content.items() if isinstance(content, dict) else ()
    return {name: value for name, value in pairs if isinstance(name, str) and isinstance(value, Tensor)}


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises ValueError where it is not JSON or too large, OSError where it is missing."""
    if path.stat().st_size > JSON_BYTES:
        raise ValueError(f"{path.name} has more than {JSON_BYTES:,} bytes")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{path.name} nests too deeply") from error


def _read(path: Path, role: str, lazy: bool) -> tuple[WeightsFile, int]:
    """The content, and the size of the files in bytes."""
    if is_pretrained_folder(path):
        return _read_folder(path, role)
    if path.suffix == ".safetensors":
        weights, metadata = read_safetensors(path, role)
        return WeightsFile(path, _stored_weights(weights), dict(metadata)), path.stat().st_size
    content = read_weights(path, role, lazy)
    content = content if isinstance(content, dict) else {}
    container = next((key for key in CONTAINERS if _stored_weights(content.get(key))), "")
    weights = _stored_weights(content[container] if container else content)
    metadata = {key: _fields(value) for key, value in content.items() if key != container and isinstance(key, str)}
    return WeightsFile(path, weights, metadata if container else {}, container), path.stat().st_size


def _stored_weights(content: Any) -> dict[str, Tensor]:
    """The weights of a mapping, without the prefixes of DDP and torch.compile and without derived buffers."""
    stored = {name: value for name, value in tensors(content).items() if not name.endswith(DERIVED_BUFFERS)}
    return clean_state_dict(clean_state_dict(stored))  # older timm removes only one of two nested prefixes


def _fields(value: Any) -> Any:
    return vars(value) if isinstance(value, argparse.Namespace) else value


def _read_folder(path: Path, role: str) -> tuple[WeightsFile, int]:
    try:
        config = read_json(path / CONFIG)
        index = path / "model.safetensors.index.json"
        names = ["model.safetensors"]
        if index.is_file() and not (path / names[0]).is_file():  # in shards
            names = sorted(set(read_json(index)["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{role} {path}: its JSON cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{role} {path / CONFIG} must be a mapping, not {type(config).__name__}")
    weights: dict[str, Tensor] = {}
    size = 0
    for name in names:
        file = path / Path(str(name)).name  # the shards of an index are in its own folder
        weights.update(read_safetensors(file, role)[0])
        size += file.stat().st_size
    return WeightsFile(path, _stored_weights(weights), config), size
