"""transformers: folders with config.json and model.safetensors, of ViTMAE, ViT, Swin and Swin V2."""

from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from mim.interop import mae, metadata, simmim
from mim.interop.files import CONFIG, WeightsFile, read_json
from mim.interop.formats import ENCODER, ModelWeights, Sections, WeightsFormat, WriteReport, has_classifier, supported
from mim.interop.names import fold_names, to_ours, to_theirs
from mim.interop.transformers_names import BACKBONE, ENCODERS, POOLER, POSITIONS, table_of
from mim.io.files import write_atomically, write_json
from mim.io.formatting import short_repr
from mim.io.limits import SIDE, WIDTH
from mim.registry import one_of

MODEL_TYPES = {"vit": "vit", "swin": "swin", "swin_v2": "swinv2"}
CLASSES = {"vit_mae": "ViTMAE", "vit": "ViT", "swin": "Swin", "swinv2": "Swinv2"}
PROCESSOR = "preprocessor_config.json"  # how images are prepared
NUMBERS = (  # of config.json: whether it may be a list, and the largest there can be
    ("image_size", True, SIDE),
    ("num_attention_heads", True, WIDTH),
    ("num_heads", True, WIDTH),
    ("decoder_num_attention_heads", False, WIDTH),
    ("window_size", False, SIDE),
    ("pretrained_window_sizes", True, SIDE),
    ("mask_ratio", False, 1),
    ("layer_norm_eps", False, 1),
)
MUST_BE: dict[str, Any] = {"hidden_act": "gelu", "qkv_bias": True, "use_absolute_embeddings": False}


class Transformers(WeightsFormat, name="transformers"):
    """A folder as `save_pretrained` writes it."""

    def recognises(self, stored: WeightsFile) -> bool:
        return stored.beside.get("model_type") in list(ENCODERS)

    def read(self, stored: WeightsFile) -> ModelWeights:
        config = stored.beside
        if config.get("model_type") not in list(ENCODERS):
            raise ValueError(f"model_type is {config.get('model_type')!r}: {one_of('', ENCODERS)}")
        _check_config(config)
        for key, only in MUST_BE.items():
            if config.get(key, only) != only:
                raise ValueError(f"{key} is {config[key]!r}; encoders here compute {only!r} alone")
        kind, prefix, _ = ENCODERS[config["model_type"]]
        bare = not any(name.startswith(prefix) for name in stored.weights)
        state, left_out = to_ours(table_of(config["model_type"], bare), stored.weights)
        told = [_published(config, state), _known(config), _normalization(stored.path), metadata.recorded(config)]
        sections, unspecified = metadata.described(kind, state, metadata.merged(*told))
        if POSITIONS in left_out and mae.fixed_positions(stored.weights[POSITIONS], sections):
            left_out.remove(POSITIONS)  # a head here makes it anew
        square = len(set(sections["DATA"].get("image_size", ()))) < 2
        if kind != "vit" and not square and _other_windows(sections):
            raise ValueError(f"{_other_windows(sections)} as here: features would differ")
        pooler = [name for name in left_out if name.removeprefix(prefix).startswith(POOLER)]
        notes = [f"{fold_names(pooler)}: behind the features, left out"] if pooler else []
        epsilon = config.get("layer_norm_eps")
        if epsilon not in (None, LAYER_NORM_EPS[kind]):
            notes.append(f"layer_norm_eps is {epsilon:g} there and {LAYER_NORM_EPS[kind]:g} here")
        left_out = [name for name in left_out if name not in pooler]
        return ModelWeights(state, sections, str(stored.path), unspecified, tuple(left_out), notes=tuple(notes))

    def write(self, weights: ModelWeights, path: Path) -> WriteReport:
        supported(weights.sections, MODEL_TYPES, "transformers")
        reason = computed_otherwise(weights.sections)
        if reason:
            raise ValueError(f"{reason}. Export to timm, which does")
        model_type, suffix, taken = _model(weights)
        theirs, left_out = to_theirs(table_of(model_type, bare=suffix == "Model"), taken)
        if "decoder.mask_token" in theirs:
            theirs[POSITIONS] = mae.decoder_positions(weights)
        model = CLASSES[model_type] + suffix
        config = {"architectures": [model], "model_type": model_type}
        config |= {**model_config(weights.sections, model_type), **_told_by(weights.state)}
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / CONFIG, {**config, **metadata.record(weights, taken)})
        if weights.sections["DATA"]["channels"] == 3 and weights.sections["DATA"]["mean"] != "estimate":
            write_json(path / PROCESSOR, _processor(weights.sections["DATA"]))
        tensors = save(theirs, metadata={"format": "pt", **metadata.origin(weights)})
        write_atomically(path / "model.safetensors", lambda file: file.write(tensors))
        left_out += [name for name in weights.state if name not in taken]
        bare = ", add_pooling_layer=False" if model == "ViTModel" else ""  # a layer that is not here
        call = f"transformers.{model}.from_pretrained({str(path)!r}{bare})"
        return WriteReport(left_out, f"{call}, or AutoModel for its encoder")


LAYER_NORM_EPS = {"vit": 1e-6, "swin": 1e-5, "swin_v2": 1e-5}


def _published(config: Sections, state: dict[str, Tensor]) -> Sections:
    """The published pretraining that a model was made for, in cells that fit its images."""
    if config["model_type"] == "vit_mae":
        return mae.pretraining(state)
    if f"{ENCODER}mask_token" not in state:
        return metadata.classifying(state)
    patch = state[f"{BACKBONE}patch_embed.proj.weight"].shape[-1]
    size = _image_size(config)
    fits = size is not None and all(side % 32 == 0 and side > 32 for side in size) and 32 % patch == 0
    return metadata.merged(
        simmim.pretraining(ENCODERS[config["model_type"]][0]), {} if fits else {"MASKER": {"cell": patch}}
    )


def _check_config(config: Sections) -> None:
    """Raises ValueError for a number of config.json that is none, or cannot be one of such a model."""
    for key, listed, most in NUMBERS:
        value = config.get(key)
        given = value if isinstance(value, list) and listed else [value]
        numbers = [item for item in given if isinstance(item, int | float) and 0 <= item <= most]
        if value is not None and len(numbers) < len(given):
            lists = ", or a list of such" if listed else ""
            raise ValueError(f"{key} is {short_repr(value)}: it must be a number from 0 to {most:,}{lists}")
    size = config.get("image_size")
    if isinstance(size, float) or (isinstance(size, list) and list(map(type, size)) != [int, int]):
        raise ValueError(f"image_size is {short_repr(size)}: it must be one whole number, or height and width")


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


def _normalization(folder: Path) -> Sections:
    """DATA.mean and DATA.std of images scaled to [0, 1], where the folder says them."""
    try:
        held = read_json(folder / PROCESSOR)
        return {"DATA": {"mean": list(held["image_mean"]), "std": list(held["image_std"])}}
    except (OSError, ValueError, KeyError, TypeError):  # none there, or one that says nothing of it
        return {}


def _processor(data: Sections) -> Sections:
    """Resized to the image size, scaled to [0, 1] and normalised."""
    height, width = data["image_size"]
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": 3,  # bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(data["mean"]),
        "image_std": list(data["std"]),
    }


def computed_otherwise(sections: Sections) -> str:
    """Why transformers does not compute an encoder as here; empty where it does."""
    return _without_a_counterpart(sections) if sections["ENCODER"]["name"] == "vit" else _other_windows(sections)


def _without_a_counterpart(sections: Sections) -> str:
    """Why transformers has no such ViT; empty where it has."""
    encoder = sections["ENCODER"]
    lacking = [key for key in ("class_token", "norm") if not encoder[key]]
    return f"ENCODER.{lacking[0]} is false: transformers computes no ViT without one" if lacking else ""


def _other_windows(sections: Sections) -> str:
    """Why transformers computes a Swin otherwise; empty where it does not.

    Where a stage's grid is smaller than the window, its Swin keeps a table of positions for the full window and its
    forward fails (its Swin V2 has no table); both take one side alone for the window and the shift.
    """
    encoder, size = sections["ENCODER"], sections["DATA"]["image_size"]
    for stage in range(len(encoder["depths"])):
        grid = [side // (encoder["patch"] * 2**stage) for side in size]
        whole = grid[0] == grid[1] and (encoder["name"] == "swin_v2" or grid[0] == encoder["window"])
        if not (min(grid) > encoder["window"] or whole):
            return (
                f"ENCODER.window {encoder['window']} and the grid of stage {stage}, {grid[0]}x{grid[1]} tokens: "
                "transformers' Swin computes no stage whose window is larger than its grid, and neither it nor its "
                "Swin V2 one whose window is as long as one of two unequal sides, or longer"
            )
    return ""


def _model(weights: ModelWeights) -> tuple[str, str, dict[str, Tensor]]:
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


def model_config(sections: Sections, model_type: str) -> Sections:
    """What config.json says of a model of a type, from the config sections of its counterpart here."""
    encoder, data = sections["ENCODER"], sections["DATA"]
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
    }
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
    head = sections["HEAD"]
    return config | {
        "decoder_hidden_size": head["width"],
        "decoder_num_hidden_layers": head["depth"],
        "decoder_num_attention_heads": head["heads"],
        "decoder_intermediate_size": int(head["width"] * head["mlp_ratio"]),
        "mask_ratio": sections["MASKER"]["ratio"],
        "norm_pix_loss": sections["TARGET"]["normalize"] == "patch",
    }


def _told_by(state: dict[str, Tensor]) -> Sections:
    """What config.json says of weights: their type, and a name for each class of a classifier."""
    told: Sections = {"dtype": str(next(iter(state.values())).dtype).removeprefix("torch.")}
    if "heads.0.bias" in state:
        classes = range(len(state["heads.0.bias"]))
        told["id2label"] = {str(number): f"LABEL_{number}" for number in classes}
        told["label2id"] = {f"LABEL_{number}": number for number in classes}
    return told
