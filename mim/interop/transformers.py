"""transformers: folders with config.json and model.safetensors, of ViTMAE, ViT, Swin and Swin V2.

Names are those on disk, which every version of the library reads; in memory they differ from version to version.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from mim.interop import mae, simmim
from mim.interop.files import CONFIG, Stored
from mim.interop.formats import (
    ENCODER,
    RECORD,
    Format,
    Sections,
    Weights,
    Written,
    classifying,
    described,
    has_classifier,
    merged,
    origin,
    record,
    sections_of,
    supported,
)
from mim.interop.names import Row, below, in_words, rows, to_ours, to_theirs
from mim.ops.files import write_json, write_whole
from mim.registry import one_of

BACKBONE = f"{ENCODER}backbone."
VIT_BLOCK = rows(
    ("norm1", "layernorm_before"),
    ("attn.qkv", tuple(f"attention.attention.{part}" for part in ("query", "key", "value"))),
    ("attn.proj", "attention.output.dense"),
    ("norm2", "layernorm_after"),
    ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"),
)
VIT = (
    *rows((f"{ENCODER}mask_token", "embeddings.mask_token")),
    *below(
        rows(
            ("cls_token", "embeddings.cls_token"),
            ("pos_embed", "embeddings.position_embeddings"),
            ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
            ("norm", "layernorm"),
        ),
        BACKBONE,
    ),
    *below(VIT_BLOCK, f"{BACKBONE}blocks.{{block}}.", "encoder.layer.{block}."),
)
DECODER = (
    *rows(
        ("head.embed", "decoder.decoder_embed"),
        ("head.mask_token", "decoder.mask_token"),
        ("head.norm", "decoder.decoder_norm"),
        ("head.predict", "decoder.decoder_pred"),
    ),
    *below(VIT_BLOCK, "head.layers.{block}.", "decoder.decoder_layers.{block}."),
    *below(VIT_BLOCK, "head.layers.{block}.", "decoder.decoder_encoder.layer.{block}."),  # as version 5 writes them
)
SELF = "attention.self."
QKV = tuple(f"{SELF}{part}" for part in ("query", "key", "value"))
SWIN_BLOCK = rows(
    ("norm1", "layernorm_before"),
    ("attn.proj", "attention.output.dense"),
    ("norm2", "layernorm_after"),
    ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"),
)
V1_BLOCK = rows(("attn.qkv", QKV), (simmim.BIAS_TABLE, f"{SELF}relative_position_bias_table"))
V2_BLOCK = rows(
    ("attn.qkv.weight", tuple(f"{name}.weight" for name in QKV)),
    ("attn.q_bias", f"{SELF}query.bias"),
    ("attn.v_bias", f"{SELF}value.bias"),
    ("attn.logit_scale", f"{SELF}logit_scale"),
    *((f"attn.cpb_mlp.{place}", f"{SELF}continuous_position_bias_mlp.{place}") for place in (0, 2)),
)


def _swin(block: tuple[Row, ...]) -> tuple[Row, ...]:
    return (
        *rows((f"{ENCODER}mask_token", "embeddings.mask_token")),
        *below(
            rows(
                ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
                ("patch_embed.norm", "embeddings.norm"),
                ("norm", "layernorm"),
                *(
                    (f"layers.{{stage}}.downsample.{name}", f"encoder.layers.{{stage-1}}.downsample.{name}")
                    for name in ("reduction", "norm")
                ),
            ),
            BACKBONE,
        ),
        *below(block, f"{BACKBONE}layers.{{stage}}.blocks.{{block}}.", "encoder.layers.{stage}.blocks.{block}."),
    )


ENCODERS = {  # by model_type: our encoder, the prefix of the encoder's names, its table
    "vit_mae": ("vit", "vit.", VIT),
    "vit": ("vit", "vit.", VIT),
    "swin": ("swin", "swin.", _swin((*SWIN_BLOCK, *V1_BLOCK))),
    "swinv2": ("swin_v2", "swinv2.", _swin((*SWIN_BLOCK, *V2_BLOCK))),
}
MODEL_TYPES = {"vit": "vit", "swin": "swin", "swin_v2": "swinv2"}
CLASSES = {"vit_mae": "ViTMAE", "vit": "ViT", "swin": "Swin", "swinv2": "Swinv2"}
POSITIONS = "decoder.decoder_pos_embed"
POOLER = "pooler."  # of ViTModel: behind the features
MUST_BE: dict[str, Any] = {"hidden_act": "gelu", "qkv_bias": True, "use_absolute_embeddings": False}


class Transformers(Format, name="transformers"):
    """A folder as `save_pretrained` writes it."""

    def recognises(self, stored: Stored) -> bool:
        return stored.beside.get("model_type") in list(ENCODERS)

    def read(self, stored: Stored) -> Weights:
        config = stored.beside
        if config.get("model_type") not in list(ENCODERS):
            raise ValueError(f"model_type is {config.get('model_type')!r}: {one_of('', ENCODERS)}")
        for key, own in MUST_BE.items():
            if config.get(key, own) != own:
                raise ValueError(f"{key} is {config[key]!r}; encoders here compute {own!r} alone")
        kind, prefix, _ = ENCODERS[config["model_type"]]
        bare = not any(name.startswith(prefix) for name in stored.weights)
        state, left_out = to_ours(_table(config["model_type"], bare), stored.weights)
        known = merged(_published(config, state), _known(config), sections_of(config.get(RECORD)))
        sections, untold = described(kind, state, known)
        if POSITIONS in left_out and mae.fixed_positions(stored.weights[POSITIONS], sections):
            left_out.remove(POSITIONS)  # a head here makes it anew
        pooler = [name for name in left_out if name.removeprefix(prefix).startswith(POOLER)]
        notes = [f"{in_words(pooler)}: behind the features, left out"] if pooler else []
        epsilon, own = config.get("layer_norm_eps"), LAYER_NORM_EPS[kind]
        if epsilon not in (None, own):
            notes.append(f"layer_norm_eps is {epsilon:g} there and {own:g} here")
        left_out = [name for name in left_out if name not in pooler]
        return Weights(state, sections, str(stored.path), untold, tuple(left_out), notes=tuple(notes))

    def write(self, weights: Weights, path: Path) -> Written:
        check = _check_vit if supported(weights.sections, MODEL_TYPES, "transformers") == "vit" else _check_windows
        check(weights)
        model_type, suffix, taken = _model(weights)
        theirs, left_out = to_theirs(_table(model_type, bare=suffix == "Model"), taken)
        if "decoder.mask_token" in theirs:
            theirs[POSITIONS] = mae.decoder_positions(weights)
        model = CLASSES[model_type] + suffix
        config = {"architectures": [model], "model_type": model_type, **_config(weights, model_type)}
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / CONFIG, {**config, **record(weights, taken)})
        tensors = save(theirs, metadata={"format": "pt", **origin(weights)})
        write_whole(path / "model.safetensors", lambda file: file.write(tensors))
        left_out += [name for name in weights.state if name not in taken]
        bare = ", add_pooling_layer=False" if model == "ViTModel" else ""  # a layer that is not here
        call = f"transformers.{model}.from_pretrained({str(path)!r}{bare})"
        return Written(left_out, f"{call}, or AutoModel for its encoder")


LAYER_NORM_EPS = {"vit": 1e-6, "swin": 1e-5, "swin_v2": 1e-5}


def _table(model_type: str, bare: bool) -> tuple[Row, ...]:
    """Names of a model of a type; `bare`: of its encoder alone, which has no prefix."""
    _, prefix, table = ENCODERS[model_type]
    top = DECODER if model_type == "vit_mae" else rows(("head.conv", "decoder.0"), ("heads.0", "classifier"))
    return table if bare else (*below(table, theirs=prefix), *top)


def _published(config: Sections, state: dict[str, Tensor]) -> Sections:
    """The published pretraining that a model was made for, in cells that fit its images."""
    if config["model_type"] == "vit_mae":
        return mae.pretraining(state)
    if f"{ENCODER}mask_token" not in state:
        return classifying(state)
    patch = state[f"{BACKBONE}patch_embed.proj.weight"].shape[-1]
    size = _image_size(config)
    fits = size is not None and all(side % 32 == 0 and side > 32 for side in size) and 32 % patch == 0
    return merged(simmim.pretraining(ENCODERS[config["model_type"]][0]), {} if fits else {"MASKER": {"cell": patch}})


def _image_size(config: Sections) -> list[int] | None:
    size = config.get("image_size")
    return [size, size] if isinstance(size, int) else list(size) if size else None


def _known(config: Sections) -> Sections:
    """What config.json says and weights do not."""
    size, heads = _image_size(config), config.get("num_attention_heads", config.get("num_heads"))
    known: Sections = {"ENCODER": {"heads": heads} if heads else {}}
    if config.get("window_size"):
        known["ENCODER"]["window"] = config["window_size"]
    if config["model_type"] == "swinv2":
        windows = config.get("pretrained_window_sizes") or []
        known["ENCODER"]["pretrained_windows"] = list(windows) if any(windows) else []
    if size:
        known["DATA"] = {"image_size": size}
    if config["model_type"] != "vit_mae":
        return known
    keys = {"normalize": "patch" if config.get("norm_pix_loss") else "none"}
    return {
        **known,
        "MASKER": {"ratio": config.get("mask_ratio", 0.75)},
        "HEAD": {"heads": config.get("decoder_num_attention_heads", 16)},
        "TARGET": keys,
    }


def _check_vit(weights: Weights) -> None:
    encoder = weights.sections["ENCODER"]
    for key, why in (("class_token", "ViT always has a class token"), ("norm", "ViT always has a last norm")):
        if not encoder[key]:
            raise ValueError(f"ENCODER.{key} is false: transformers' {why}")


def _check_windows(weights: Weights) -> None:
    """Where a stage's grid is smaller than the window, transformers' Swin keeps a table of positions for the full
    window and its forward fails (its Swin V2 has no table); both take one side alone for the window and the shift.
    """
    encoder, size = weights.sections["ENCODER"], weights.sections["DATA"]["image_size"]
    for stage in range(len(encoder["depths"])):
        grid = [side // (encoder["patch"] * 2**stage) for side in size]
        whole = grid[0] == grid[1] and (encoder["name"] == "swin_v2" or grid[0] == encoder["window"])
        if not (min(grid) > encoder["window"] or whole):
            raise ValueError(
                f"ENCODER.window {encoder['window']} and the grid of stage {stage}, {grid[0]}x{grid[1]} tokens: "
                "transformers' Swin computes no stage whose window is larger than its grid, and neither it nor its "
                "Swin V2 one whose window is as long as one of two unequal sides, or longer. Export to timm, which does"
            )


def _model(weights: Weights) -> tuple[str, str, dict[str, Tensor]]:
    """The model type, what follows in the name of its class, and the weights that it has a place for."""
    sections, state = weights.sections, weights.state
    encoder, plain = sections["ENCODER"], weights.below(BACKBONE)
    model_type = MODEL_TYPES[encoder["name"]]
    square = len(set(sections["DATA"]["image_size"])) == 1
    if sections["TASK"] == "pretrain" and square and weights.below("head."):
        if encoder["name"] == "vit" and mae.fits_decoder(weights):
            return "vit_mae", "ForPreTraining", {**plain, **weights.below("head.")}
        if encoder["hidden"] == "replace" and simmim.fits_head(weights):
            return model_type, "ForMaskedImageModeling", state
    if has_classifier(weights, ["class"] if encoder["name"] == "vit" else ["mean"]):
        return model_type, "ForImageClassification", state
    return model_type, "Model", plain


def _config(weights: Weights, model_type: str) -> Sections:
    encoder, data = weights.sections["ENCODER"], weights.sections["DATA"]
    height, width = data["image_size"]
    config = {
        "image_size": height if height == width else [height, width],
        "patch_size": encoder["patch"],
        "num_channels": data["channels"],
        "qkv_bias": True,
        "hidden_act": "gelu",
        "layer_norm_eps": LAYER_NORM_EPS[encoder["name"]],
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "dtype": str(next(iter(weights.state.values())).dtype).removeprefix("torch."),
    }
    if "heads.0.bias" in weights.state:
        classes = range(len(weights.state["heads.0.bias"]))
        config["id2label"] = {str(number): f"LABEL_{number}" for number in classes}
        config["label2id"] = {f"LABEL_{number}": number for number in classes}
    if encoder["name"] != "vit":
        pretrained = list(encoder.get("pretrained_windows", ()))
        return config | {
            **({"pretrained_window_sizes": pretrained} if any(pretrained) else {}),
            "embed_dim": encoder["width"],
            "depths": list(encoder["depths"]),
            "num_heads": list(encoder["heads"]),
            "window_size": encoder["window"],
            "mlp_ratio": encoder["mlp_ratio"],
            "drop_path_rate": encoder["drop_path"],
            "encoder_stride": encoder["patch"] * 2 ** (len(encoder["depths"]) - 1),
        }
    config |= {
        "hidden_size": encoder["width"],
        "num_hidden_layers": encoder["depth"],
        "num_attention_heads": encoder["heads"],
        "intermediate_size": int(encoder["width"] * encoder["mlp_ratio"]),
    }
    if model_type != "vit_mae":
        return config | {"encoder_stride": encoder["patch"]}
    head = weights.sections["HEAD"]
    return config | {
        "decoder_hidden_size": head["width"],
        "decoder_num_hidden_layers": head["depth"],
        "decoder_num_attention_heads": head["heads"],
        "decoder_intermediate_size": int(head["width"] * head["mlp_ratio"]),
        "mask_ratio": weights.sections["MASKER"]["ratio"],
        "norm_pix_loss": weights.sections["TARGET"]["normalize"] == "patch",
    }
