"""Files as other code bases write them: the names and shapes of official state dicts, and what lies beside them.

Names and shapes are written out here, so that nothing of mim.interop is taken for granted.
"""

import argparse
from pathlib import Path, PosixPath

import numpy as np
import torch
from torch import Tensor
from yacs.config import CfgNode

Shapes = dict[str, tuple[int, ...]]
State = dict[str, Tensor]


def random_weights(shapes: Shapes, seed: int = 0) -> State:
    """Weights that are all different and all matter: factors around 1, anything else around 0."""
    generator = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    factors = ("norm.weight", "norm1.weight", "norm2.weight", "gamma_1", "gamma_2", "logit_scale", "running_var")
    return {name: 1 + weight.abs() if name.endswith(factors) else weight for name, weight in state.items()}


def linear(name: str, out: int, into: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (out, into), **({f"{name}.bias": (out,)} if bias else {})}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def below(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


def stem(width: int, patch: int, channels: int) -> Shapes:
    return {"patch_embed.proj.weight": (width, channels, patch, patch), "patch_embed.proj.bias": (width,)}


def feed_forward(width: int, ratio: int = 4) -> Shapes:
    return linear("mlp.fc1", ratio * width, width) | linear("mlp.fc2", width, ratio * width)


def block(width: int) -> Shapes:
    """A plain transformer's block."""
    attention = linear("attn.qkv", 3 * width, width) | linear("attn.proj", width, width)
    return norm("norm1", width) | attention | norm("norm2", width) | feed_forward(width)


# -------------------------------------------------------------------- facebookresearch/mae


def vit(width: int = 24, depth: int = 2, patch: int = 8, channels: int = 3, tokens: int = 16) -> Shapes:
    """The encoder of models_mae.py, and models_vit.py up to its classifier, with a class token and its last norm."""
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 1 + tokens, width), **stem(width, patch, channels)}
    for number in range(depth):
        shapes |= below(f"blocks.{number}.", block(width))
    return shapes | norm("norm", width)


def mae_pretrained(seed: int = 0, decoder: int = 16, decoder_depth: int = 2, **keys: int) -> State:
    """models_mae.py, with its fixed table of decoder positions; the encoder alone where decoder is 0."""
    shapes = vit(**keys)
    width, (_, channels, patch, _) = shapes["norm.weight"][0], shapes["patch_embed.proj.weight"]
    if not decoder:
        return random_weights(shapes, seed)
    shapes |= linear("decoder_embed", decoder, width) | {"mask_token": (1, 1, decoder)}
    for number in range(decoder_depth):
        shapes |= below(f"decoder_blocks.{number}.", block(decoder))
    shapes |= norm("decoder_norm", decoder) | linear("decoder_pred", patch**2 * channels, decoder)
    side = round((shapes["pos_embed"][1] - 1) ** 0.5)
    return random_weights(shapes, seed) | {"decoder_pos_embed": sine_cosine(side, decoder)}


def mae_finetuned(seed: int = 0, classes: int = 10, pool: str = "mean", **keys: int) -> State:
    """models_vit.py: on the mean of tokens the norm stands behind it, as fc_norm."""
    shapes = vit(**keys)
    width = shapes["norm.weight"][0]
    if pool == "mean":
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith("norm.")}
        shapes |= norm("fc_norm", width)
    return random_weights(shapes | linear("head", classes, width), seed)


def mae_probed(seed: int = 0, classes: int = 10, **keys: int) -> State:
    """models_vit.py under main_linprobe.py: a BatchNorm without weights ahead of the classifier."""
    shapes = vit(**keys)
    width = shapes["norm.weight"][0]
    shapes |= {"head.0.running_mean": (width,), "head.0.running_var": (width,)} | linear("head.1", classes, width)
    return random_weights(shapes, seed) | {"head.0.num_batches_tracked": torch.tensor(7)}


def sine_cosine(side: int, width: int) -> Tensor:
    """MAE's fixed positions: zeros for the class token, then sines and cosines of the column, then of the row."""
    table = np.zeros((1 + side * side, width))
    quarter = width // 4
    for row in range(side):
        for column in range(side):
            for k in range(quarter):
                wave = 10000 ** (-k / quarter)
                vector = table[1 + row * side + column]
                vector[k], vector[quarter + k] = np.sin(column * wave), np.cos(column * wave)
                vector[2 * quarter + k], vector[3 * quarter + k] = np.sin(row * wave), np.cos(row * wave)
    return torch.from_numpy(table)[None].float()


def write_mae(path: Path, weights: State, **arguments: object) -> Path:
    """A file as main_pretrain.py, main_finetune.py and main_linprobe.py write it, with their arguments pickled."""
    shared = {"batch_size": 64, "output_dir": PosixPath("output"), "device": "cuda", "blr": 1.5e-4}
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    training = {"optimizer": optimizer, "epoch": 3, "scaler": {"scale": 65536.0}}
    torch.save({"model": weights, **training, "args": argparse.Namespace(**shared, **arguments)}, path)
    return path


# -------------------------------------------------------------------- microsoft/SimMIM


def swin(
    width: int = 8,
    depths: tuple[int, ...] = (2, 2),
    heads: tuple[int, ...] = (2, 4),
    windows: tuple[int, ...] = (4, 4),
    channels: int = 3,
    version: int = 1,
) -> Shapes:
    """Swin, or Swin V2, of Microsoft's: a down-sampling layer ends every stage but the last."""
    shapes = stem(width, 4, channels) | norm("patch_embed.norm", width)
    for stage, (depth, count, window) in enumerate(zip(depths, heads, windows, strict=True)):
        dim = width * 2**stage
        for number in range(depth):
            shapes |= below(f"layers.{stage}.blocks.{number}.", _swin_block(dim, count, window, version))
        if stage + 1 < len(depths):
            normed = 4 * dim if version == 1 else 2 * dim
            down = linear("reduction", 2 * dim, 4 * dim, bias=False) | norm("norm", normed)
            shapes |= below(f"layers.{stage}.downsample.", down)
    return shapes | norm("norm", width * 2 ** (len(depths) - 1))


def _swin_block(width: int, heads: int, window: int, version: int) -> Shapes:
    shared = norm("norm1", width) | linear("attn.proj", width, width) | norm("norm2", width) | feed_forward(width)
    if version == 1:
        table = {"attn.relative_position_bias_table": ((2 * window - 1) ** 2, heads)}
        return shared | table | linear("attn.qkv", 3 * width, width)
    attention = {"attn.logit_scale": (heads, 1, 1), "attn.q_bias": (width,), "attn.v_bias": (width,)}
    network = linear("attn.cpb_mlp.0", 512, 2) | linear("attn.cpb_mlp.2", heads, 512, bias=False)
    return shared | attention | network | linear("attn.qkv", 3 * width, width, bias=False)


def swin_buffers(shapes: Shapes, windows: tuple[int, ...] = (4, 4), version: int = 1) -> State:
    """What official files hold beside the weights: made from the window and the grid, not learned."""
    buffers: State = {}
    for name in shapes:
        if name.endswith("attn.proj.weight"):
            block = name.removesuffix("attn.proj.weight")
            window = windows[int(name.split(".")[1])]
            buffers[f"{block}attn.relative_position_index"] = torch.zeros(window**2, window**2, dtype=torch.long)
            if version == 2:
                buffers[f"{block}attn.relative_coords_table"] = torch.zeros(1, 2 * window - 1, 2 * window - 1, 2)
            if ".blocks.1." in name:
                buffers[f"{block}attn_mask"] = torch.zeros(4, window**2, window**2)
    return buffers


def simmim_vit(
    width: int = 16,
    depth: int = 2,
    heads: int = 2,
    patch: int = 8,
    channels: int = 3,
    side: int = 4,
    shared: bool = True,
) -> Shapes:
    """SimMIM's ViT up to its last norm: one table of biases for all blocks, or one for each."""
    bias = {"relative_position_bias_table": ((2 * side - 1) ** 2 + 3, heads)}
    shapes = {"cls_token": (1, 1, width), **stem(width, patch, channels)}
    shapes |= below("rel_pos_bias.", bias) if shared else {}
    for number in range(depth):
        attention = {"attn.q_bias": (width,), "attn.v_bias": (width,), "gamma_1": (width,), "gamma_2": (width,)}
        attention |= linear("attn.qkv", 3 * width, width, bias=False) | linear("attn.proj", width, width)
        attention |= {} if shared else below("attn.", bias)
        one = norm("norm1", width) | attention | norm("norm2", width) | feed_forward(width)
        shapes |= below(f"blocks.{number}.", one)
    return shapes | norm("norm", width)


def simmim_pretrained(encoder: Shapes, stride: int, buffers: State | None = None, seed: int = 0) -> State:
    """models/simmim.py: the encoder with its mask token, and one convolution to the pixels of a token."""
    width, channels = encoder["norm.weight"][0], encoder["patch_embed.proj.weight"][1]
    token = {"mask_token": (1, 1, encoder["patch_embed.proj.bias"][0])}
    head = {"decoder.0.weight": (stride**2 * channels, width, 1, 1), "decoder.0.bias": (stride**2 * channels,)}
    fixed = {f"encoder.{name}": buffer for name, buffer in (buffers or {}).items()}
    return random_weights(below("encoder.", {**token, **encoder}) | head, seed) | fixed


def simmim_finetuned(encoder: Shapes, classes: int = 10, buffers: State | None = None, seed: int = 0) -> State:
    """Without a prefix, and with a classifier; a ViT's norm stands behind the mean, as fc_norm."""
    width = encoder["norm.weight"][0]
    if "cls_token" in encoder:
        encoder = {name: shape for name, shape in encoder.items() if not name.startswith("norm.")}
        encoder |= norm("fc_norm", width)
    return random_weights(encoder | linear("head", classes, width), seed) | (buffers or {})


def simmim_config(
    size: int = 32, window: int = 4, ratio: float = 0.6, section: str = "SWIN", **keys: object
) -> CfgNode:
    """The config that SimMIM's scripts pickle into a checkpoint, as far as it tells of the model."""
    config = CfgNode()
    config.BASE = [""]
    config.DATA = CfgNode({"IMG_SIZE": size, "MASK_PATCH_SIZE": 16, "MASK_RATIO": ratio, "BATCH_SIZE": 128})
    config.MODEL = CfgNode({"TYPE": "swin", "NAME": "simmim_pretrain", section: {"WINDOW_SIZE": window, **keys}})
    config.OUTPUT = "output"
    config.freeze()
    return config


def write_simmim(path: Path, weights: State, config: CfgNode | None = None) -> Path:
    """A file as SimMIM's scripts write it, with their yacs config pickled."""
    training = {"optimizer": {"state": {}, "param_groups": []}, "lr_scheduler": {}, "max_accuracy": 0.0, "epoch": 99}
    torch.save({"model": weights, **training, "config": simmim_config() if config is None else config}, path)
    return path
