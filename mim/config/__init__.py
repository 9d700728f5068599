"""Configs: what can be set, and how a YAML file and `KEY VALUE` pairs become one checked config."""

from mim.config.load import describe, differing, dump, flat, load_config, parse_config, read_mapping, read_pairs

__all__ = ["describe", "differing", "dump", "flat", "load_config", "parse_config", "read_mapping", "read_pairs"]
