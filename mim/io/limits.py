"""Limits: beyond these no config and no file of weights is taken, so that reading one costs seconds and megabytes.

Each lies far above what is trained anywhere, and below what would take a machine's memory before an error is said.
"""

CONFIG_BYTES = 2**20  # a complete config has some 3,000
CONFIG_VALUES = 10_000  # of a YAML text, with what its aliases repeat; a complete config has some 150
CONFIG_LEVELS = 16  # of lists and mappings in each other; a config has 3
INTEGER = 2**63 - 1  # what a tensor, a clock and a file can count
JSON_BYTES = 2**26  # of a config.json, which may name many thousand classes, and of an index of shards
REPEATED = 2**32  # bytes that weights may come to, however few their file has: what copying them costs at worst
SHARED = 4  # how often weights may stand in one file under several names: tied layers, not a bomb of views

SIDE = 2**16  # pixels of an image side
WIDTH = 2**16
BLOCKS = 2**10  # of an encoder or a head; building one costs a millisecond even without memory
LARGEST: dict[str, int] = {  # by the key of a config, in whatever section; of a list, each number
    "image_size": SIDE,
    "patch": SIDE,
    "window": SIDE,
    "pretrained_windows": SIDE,
    "channels": 2**12,
    "width": WIDTH,
    "mlp_ratio": 2**10,
    "depth": BLOCKS,
    "depths": BLOCKS,  # also in sum
    "batch_size": 2**20,
    "workers": 2**12,
    "timeout_s": 366 * 24 * 3600,  # a year
}
