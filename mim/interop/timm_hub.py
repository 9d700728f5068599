"""timm's folders: the config.json that timm reads beside model.safetensors, here or at a hub."""

from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.layers import GELU
from timm.models.beit import Beit
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from mim.encoders import Timm
from mim.interop.kinds import EncoderKind

ARCHITECTURE, ARGUMENTS, PUBLISHED = "architecture", "model_args", "pretrained_cfg"
CLASSES: dict[EncoderKind, type[nn.Module]] = {
    "vit": VisionTransformer,
    "beit": Beit,
    "swin": SwinTransformer,
    "swin_v2": SwinTransformerV2,
}
UNLIKE_OURS = ("reg_token", "norm_pre", "attn_pool", "rope")  # modules of timm's ViT that ours has not
SCALES = (".q_norm", ".k_norm", ".mlp.norm", ".ls1", ".ls2")  # neither has our blocks


def sections_of(config: Mapping[str, Any], kind: EncoderKind | None) -> dict[str, Any]:
    """ENCODER and DATA of a folder of timm; empty where config.json names no model of timm.

    The encoder is ours of that kind where timm's model is one, else ENCODER.name timm.

    Args:
        config: the content of config.json.
        kind: whose names the weights have.
    """
    architecture = config.get(ARCHITECTURE)
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        return {}
    published = config.get(PUBLISHED, config)
    arguments = config.get(ARGUMENTS, {})
    if not isinstance(published, dict) or not isinstance(arguments, dict):
        return {}
    data: dict[str, Any] = {}
    if isinstance(size := published.get("input_size"), list) and len(size) == 3:
        data |= {"channels": size[0], "image_size": size[1:]}
    for key in ("mean", "std"):
        if isinstance(values := published.get(key), list) and len(values) == data.get("channels"):
            data[key] = values
    arguments = {name: value for name, value in arguments.items() if name != "num_classes"}
    keys = _keys_of(architecture, arguments, kind)
    if keys is None:
        options = [f"{name}={value}" for name, value in arguments.items() if name not in ("in_chans", "img_size")]
        keys = {"name": Timm.name, "model": architecture, "options": options}
    return {"ENCODER": keys, "DATA": data}


def _keys_of(architecture: str, arguments: dict[str, Any], kind: EncoderKind | None) -> dict[str, Any] | None:
    """What the weights of an encoder of ours do not show; None where timm's model computes something else."""
    if kind is None:
        return None
    try:
        with torch.device("meta"):
            model: Any = timm.create_model(architecture, **arguments)
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError):
        return None
    unlike = any(not isinstance(getattr(model, name, None), nn.Identity | None) for name in UNLIKE_OURS)
    same_class = type(model) is CLASSES[kind]
    if not same_class or unlike or not _blocks_are_ours(model):
        return None
    if kind in ("swin", "swin_v2"):
        return _windows(model, kind)
    block = model.blocks[0]
    keys = {"name": kind, "heads": block.attn.num_heads}
    if kind == "beit":
        return keys
    return {**keys, "norm_eps": block.norm1.eps, "class_position": not model.no_embed_class}


def _windows(model: Any, kind: EncoderKind) -> dict[str, Any] | None:
    """The window, the largest of all stages; None where one is not square."""
    attention = [stage.blocks[0].attn for stage in model.layers]
    sides = [side for each in attention for side in each.window_size]
    if sides[::2] != sides[1::2]:
        return None
    keys = {"name": kind, "window": max(sides)}
    if kind == "swin":
        return keys
    pretrained = [each.pretrained_window_size[0] for each in attention]
    return {**keys, "pretrained_windows": pretrained if any(pretrained) else []}


def _blocks_are_ours(model: nn.Module) -> bool:
    """Whether each MLP is two layers around GELU, and neither queries and keys nor branches are scaled."""
    mlps = [module for name, module in model.named_modules() if name.endswith(".mlp")]
    scales = [module for name, module in model.named_modules() if name.endswith(SCALES)]
    plain = all(type(getattr(mlp, "act", None)) in (nn.GELU, GELU) for mlp in mlps)
    return plain and all(isinstance(scale, nn.Identity) for scale in scales)
