"""Limits on configs and files of weights: beyond them, reading ends with an error before it exhausts memory or time.

Each limit is far above what anyone trains.
"""

CONFIG_BYTES = 2**20  # a complete config has about 3,000
CONFIG_VALUES = 10_000  # of a YAML text, with the values that its aliases repeat; a complete config has about 150
CONFIG_LEVELS = 16  # of nested lists and mappings; a config has 3
INTEGER = 2**63 - 1  # the largest size of a tensor, a clock or a file
JSON_BYTES = 2**26  # of a config.json, which may name thousands of classes, and of an index of shards
REPEATED = 2**32  # bytes of weights that are always allowed, however small their file is; copying them is affordable
SHARED = 4  # how many times the bytes of a file its weights may have: tied layers have two names, a bomb has thousands

SIDE = 2**16  # pixels of an image side
WIDTH = 2**16
BLOCKS = 2**10  # of an encoder or a head; building one takes a millisecond even on the meta device
LARGEST: dict[str, int] = {  # by the key of a config, in any section; in a list, for each number
    "image_size": SIDE,
    "patch": SIDE,
    "window": SIDE,
    "pretrained_windows": SIDE,
    "channels": 2**12,
    "width": WIDTH,
    "head_width": WIDTH,
    "mlp_ratio": 2**10,
    "depth": BLOCKS,
    "depths": BLOCKS,  # also their sum
    "batch_size": 2**20,
    "workers": 2**12,
    "timeout_s": 366 * 24 * 3600,  # a year
}
