"""transformers: folders with config.json and model.safetensors, of ViTMAE, ViT, Swin and Swin V2."""

from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from mim.interop import class_names, mae, metadata, simmim
from mim.interop.files import CONFIG, WeightsFile, read_json
from mim.interop.formats import BACKBONE, ENCODER, ModelWeights, Sections, WeightsFormat, WriteReport
from mim.interop.kinds import check_encoder, check_keys, has_classifier
from mim.interop.names import fold_names, to_ours, to_theirs
from mim.interop.transformers_names import ENCODERS, POOLER, POSITIONS, table_of
from mim.io.files import write_atomically, write_json
from mim.io.formatting import short_repr
from mim.io.limits import SIDE, WIDTH
from mim.registry import one_of

MODEL_TYPES = {"vit": "vit", "swin": "swin", "swin_v2": "swinv2"}
CLASSES = {"vit_mae": "ViTMAE", "vit": "ViT", "swin": "Swin", "swinv2": "Swinv2"}
PROCESSOR = "preprocessor_config.json"  # how images are prepared
NUMBERS = (  # keys of config.json, whether each may be a list, and its largest value
    ("image_size", True, SIDE),
    ("num_attention_heads", True, WIDTH),
    ("num_heads", True, WIDTH),
    ("decoder_num_attention_heads", False, WIDTH),
    ("window_size", False, SIDE),
    ("pretrained_window_sizes", True, SIDE),
    ("mask_ratio", False, 1),
    ("layer_norm_eps", False, 1),
)
REQUIRED: dict[str, Any] = {"hidden_act": "gelu", "use_absolute_embeddings": False}
REQUIRED_OF_SWIN: dict[str, Any] = {**REQUIRED, "qkv_bias": True}


class Transformers(WeightsFormat, name="transformers"):
    """A folder that `save_pretrained` writes."""

    writes = "folder"

    def recognises(self, file: WeightsFile) -> bool:
        return file.metadata.get("model_type") in list(ENCODERS)

    def read(self, file: WeightsFile) -> ModelWeights:
        config = file.metadata
        if not self.recognises(file):
            raise ValueError(f"model_type is {config.get('model_type')!r}: {one_of('', ENCODERS)}")
        _check_config(config)
        kind, prefix, _ = ENCODERS[config["model_type"]]
        bare = not any(name.startswith(prefix) for name in file.weights)
        state, left_out = to_ours(table_of(config["model_type"], bare), file.weights)
        layers = [_published(config, state), _from_config(config), _normalization(file.path)]
        facts = metadata.merge(*layers, metadata.read_metadata(config))
        sections, unspecified, guesses = metadata.infer_sections(kind, state, facts)
        if POSITIONS in left_out and mae.is_fixed_table(file.weights[POSITIONS], sections):
            left_out.remove(POSITIONS)  # a head here computes it when it is built
        square = len(set(sections["DATA"].get("image_size", ()))) < 2
        if kind != "vit" and not square and incompatibility(sections):
            raise ValueError(f"{incompatibility(sections)}: features would differ")
        pooler = [name for name in left_out if name.removeprefix(prefix).startswith(POOLER)]
        notes = [f"{fold_names(pooler)}: behind the features, left out"] if pooler else []
        epsilon = config.get("layer_norm_eps")
        if kind != "vit" and epsilon not in (None, LAYER_NORM_EPS[kind]):
            notes.append(f"layer_norm_eps is {epsilon:g} there and {LAYER_NORM_EPS[kind]:g} here")
        left_out = [name for name in left_out if name not in pooler]
        return ModelWeights(
            state, sections, str(file.path), unspecified, tuple(left_out), notes=tuple(notes), guesses=guesses
        )

    def write(self, weights: ModelWeights, path: Path) -> WriteReport:
        kind = check_encoder(weights.sections, MODEL_TYPES, "transformers")
        if kind == "vit":
            check_keys(weights.sections, "transformers", head_width=0, patch_norm=False, norm_first=True)
            weights = mae.with_class_position(weights)
        reason = incompatibility(weights.sections)
        if reason:
            raise ValueError(f"{reason}. Convert to timm, which does")
        model_type, suffix, ours = _model(weights)
        theirs, left_out = to_theirs(table_of(model_type, bare=suffix == "Model"), ours)
        if "decoder.mask_token" in theirs:
            theirs[POSITIONS] = mae.decoder_positions(weights)
        model = CLASSES[model_type] + suffix
        config = {"architectures": [model], "model_type": model_type}
        config |= {**model_config(weights.sections, model_type), **_from_weights(weights.state, weights.classes)}
        path.mkdir(parents=True, exist_ok=True)
        record = metadata.metadata_of(weights, ours)
        record.pop(class_names.KEY, None)  # id2label holds the names
        write_json(path / CONFIG, {**config, **record})
        if weights.sections["DATA"]["channels"] == 3 and weights.sections["DATA"]["mean"] != "estimate":
            write_json(path / PROCESSOR, _processor(weights.sections["DATA"]))
        content = save(theirs, metadata={"format": "pt", **metadata.origin(weights)})
        write_atomically(path / "model.safetensors", lambda file: file.write(content))
        left_out += [name for name in weights.state if name not in ours]
        bare = ", add_pooling_layer=False" if model == "ViTModel" else ""  # a layer that the file lacks
        call = f"transformers.{model}.from_pretrained({str(path)!r}{bare})"
        return WriteReport(left_out, f"{call}, or AutoModel for its encoder")


LAYER_NORM_EPS = {"swin": 1e-5, "swin_v2": 1e-5}


def _published(config: Sections, state: dict[str, Tensor]) -> Sections:
    """The sections of the published pretraining of a model, with cells that fit its images."""
    if config["model_type"] == "vit_mae":
        return mae.pretraining(state)
    if f"{ENCODER}mask_token" not in state:
        return metadata.classification_sections(state)
    patch = state[f"{BACKBONE}patch_embed.proj.weight"].shape[-1]
    size = _image_size(config)
    fits = size is not None and all(side % 32 == 0 and side > 32 for side in size) and 32 % patch == 0
    sections = simmim.pretraining(ENCODERS[config["model_type"]][0])
    return sections if fits else metadata.merge(sections, {"MASKER": {"cell": patch}})


def _check_config(config: Sections) -> None:
    """Raises ValueError for a value of config.json that no such model can have, or no encoder here computes."""
    for key, listed, most in NUMBERS:
        value = config.get(key)
        items = value if isinstance(value, list) and listed else [value]
        if value is not None and not all(isinstance(item, int | float) and 0 <= item <= most for item in items):
            lists = ", or a list of such numbers" if listed else ""
            raise ValueError(f"{key} is {short_repr(value)}: it must be a number from 0 to {most:,}{lists}")
    size = config.get("image_size")
    if isinstance(size, float) or (isinstance(size, list) and list(map(type, size)) != [int, int]):
        raise ValueError(f"image_size is {short_repr(size)}: it must be one integer, or height and width")
    for key, only in (REQUIRED if ENCODERS[config["model_type"]][0] == "vit" else REQUIRED_OF_SWIN).items():
        if config.get(key, only) != only:
            raise ValueError(f"{key} is {config[key]!r}: encoders here compute {only!r} only")


def _image_size(config: Sections) -> list[int] | None:
    size = config.get("image_size")
    return [size, size] if isinstance(size, int) else list(size) if size else None


def _from_config(config: Sections) -> Sections:
    """The sections that config.json specifies."""
    size, heads = _image_size(config), config.get("num_attention_heads", config.get("num_heads"))
    encoder: Sections = {"heads": heads} if heads else {}
    of_blocks = _of_blocks(config)
    encoder |= of_blocks
    if config.get("window_size"):
        encoder["window"] = config["window_size"]
    if config["model_type"] == "swinv2":
        windows = config.get("pretrained_window_sizes") or []
        encoder["pretrained_windows"] = list(windows) if any(windows) else []
    sections: Sections = {"ENCODER": encoder, **({"DATA": {"image_size": size}} if size else {})}
    if config["model_type"] == "vit_mae":
        sections["MASKER"] = {"ratio": config.get("mask_ratio", 0.75)}
        sections["HEAD"] = {"heads": config.get("decoder_num_attention_heads", 16), **of_blocks}
        sections["TARGET"] = {"normalize": "patch" if config.get("norm_pix_loss") else "none"}
    return sections


def _of_blocks(config: Sections) -> Sections:
    """The keys of the blocks of a ViT, in encoder and decoder, that config.json specifies."""
    if ENCODERS[config["model_type"]][0] != "vit":
        return {}
    keys = {"norm_eps": config.get("layer_norm_eps"), "qkv_bias": config.get("qkv_bias")}
    return {key: value for key, value in keys.items() if value is not None}


def _normalization(folder: Path) -> Sections:
    """DATA.mean and DATA.std of images scaled to [0, 1], where the folder specifies them."""
    try:
        content = read_json(folder / PROCESSOR)
        return {"DATA": {"mean": list(content["image_mean"]), "std": list(content["image_std"])}}
    except (OSError, ValueError, KeyError, TypeError):  # there is no such file, or it does not specify them
        return {}


def _processor(data: Sections) -> Sections:
    """The image processor: resizes to the image size, scales to [0, 1] and normalises."""
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


def incompatibility(sections: Sections) -> str:
    """Why transformers does not compute an encoder as this toolkit does; empty where it does.

    Where a stage's grid is smaller than the window, its Swin keeps a table of positions for the full window and its
    forward fails (its Swin V2 has no table); both use one number for the window and the shift of both axes.
    """
    encoder, size = sections["ENCODER"], sections["DATA"]["image_size"]
    if encoder["name"] == "vit":
        absent = [key for key in ("class_token", "norm") if not encoder[key]]
        return f"ENCODER.{absent[0]} is false: transformers has no ViT without one" if absent else ""
    for stage in range(len(encoder["depths"])):
        grid = [side // (encoder["patch"] * 2**stage) for side in size]
        one_window = grid[0] == grid[1] and (encoder["name"] == "swin_v2" or grid[0] == encoder["window"])
        if min(grid) <= encoder["window"] and not one_window:
            return (
                f"ENCODER.window {encoder['window']} and the grid of stage {stage}, {grid[0]}x{grid[1]} tokens: "
                "transformers' Swin computes no stage with a window larger than its grid, and neither it nor its Swin "
                "V2 computes one with a window at least as long as one of two unequal sides"
            )
    return ""


def _model(weights: ModelWeights) -> tuple[str, str, dict[str, Tensor]]:
    """The model type, the suffix of its class, and the weights that this class has names for."""
    sections, backbone = weights.sections, weights.select(BACKBONE)
    encoder = sections["ENCODER"]
    model_type = MODEL_TYPES[encoder["name"]]
    square = len(set(sections["DATA"]["image_size"])) == 1
    if sections["TASK"] == "pretrain" and square and weights.select("head.") and _predicts_pixels(sections["TARGET"]):
        if encoder["name"] == "vit" and mae.has_mae_decoder(weights):
            return "vit_mae", "ForPreTraining", {**backbone, **weights.select("head.")}
        if encoder["hidden"] == "replace" and simmim.has_simmim_head(weights):
            return model_type, "ForMaskedImageModeling", weights.state
    if has_classifier(weights, ["class"] if encoder["name"] == "vit" else ["mean"]):
        return model_type, "ForImageClassification", weights.state
    return model_type, "Model", backbone


def _predicts_pixels(target: Any) -> bool:
    """Whether a target is the one of the library's pretraining models: not another one, nor several."""
    return isinstance(target, dict) and (target["name"], target.get("stride")) == ("pixels", 1)


def model_config(sections: Sections, model_type: str) -> Sections:
    """The content of config.json for a model type, from the config sections of its counterpart here."""
    encoder, data = sections["ENCODER"], sections["DATA"]
    height, width = data["image_size"]
    config = {
        "image_size": height if height == width else [height, width],
        "patch_size": encoder["patch"],
        "num_channels": data["channels"],
        "qkv_bias": encoder.get("qkv_bias", True),
        "hidden_act": "gelu",
        "layer_norm_eps": encoder.get("norm_eps") or LAYER_NORM_EPS[encoder["name"]],
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
        "mask_ratio": sections["MASKER"].get("ratio", 0.75),  # the library's own, where the masker has none
        "norm_pix_loss": sections["TARGET"]["normalize"] == "patch",
    }


def _from_weights(state: dict[str, Tensor], classes: tuple[str, ...]) -> Sections:
    """The content of config.json that the weights show: their type, and a name for each class of a classifier."""
    config: Sections = {"dtype": str(next(iter(state.values())).dtype).removeprefix("torch.")}
    if class_names.BIAS in state:
        config |= class_names.label_maps(classes, len(state[class_names.BIAS]))
    return config
