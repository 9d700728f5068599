"""Configs: what can be set, and how a YAML file and `KEY VALUE` pairs become one checked config. No torch here."""

from mim.config.load import Overrides, change_config, differing, load_config, parse_config, read_mapping, read_pairs
from mim.config.parts import PartConfig, PartList
from mim.config.tree import Config

__all__ = [
    "Config",
    "Overrides",
    "PartConfig",
    "PartList",
    "change_config",
    "differing",
    "load_config",
    "parse_config",
    "read_mapping",
    "read_pairs",
]
