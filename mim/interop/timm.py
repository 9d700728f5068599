"""timm: state dicts of its ViT, Beit, Swin and Swin V2, as .pth or .safetensors."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from mim.encoders import Timm as Encoder
from mim.encoders.hiding.backbone import BackboneSettings
from mim.interop import class_names, metadata, timm_hub
from mim.interop.files import WeightsFile
from mim.interop.formats import BACKBONE, ENCODER, ModelWeights, Sections, WeightsFormat, WriteReport
from mim.interop.kinds import check_encoder, check_keys, encoder_kind, has_classifier
from mim.interop.names import rows, to_ours, to_theirs
from mim.io.files import write_atomically
from mim.structures import ImageSpec

MODELS = {  # a model of timm for each encoder; create_arguments turns it into the exact one
    "vit": "vit_base_patch16_224",
    "beit": "beit_base_patch16_224",
    "swin": "swin_base_patch4_window7_224",
    "swin_v2": "swinv2_base_window8_256",
}
PLAIN_CLASSIFIER = rows(("readouts.0.norm", "fc_norm"), ("readouts.0.linear", "head"))
SWIN_CLASSIFIER = rows(("readouts.0.linear", "head.fc"))
TIMM_EPS = 1e-6  # of the LayerNorm of its ViT and Beit
CLASSIFIERS = {"vit": PLAIN_CLASSIFIER, "beit": PLAIN_CLASSIFIER, "swin": SWIN_CLASSIFIER, "swin_v2": SWIN_CLASSIFIER}
POOLS = {
    "vit": ("class", "mean", "mean, norm"),
    "beit": ("class", "mean, norm"),
    "swin": ("mean",),
    "swin_v2": ("mean",),
}


class Timm(WeightsFormat, name="timm"):
    """Our backbones are timm's own modules, so only the prefix and the names of the classifier differ."""

    writes = "torch or safetensors"

    def recognises(self, file: WeightsFile) -> bool:
        return encoder_kind(file.weights) is not None or _is_any(_record_of(file))

    def infers_config(self, file: WeightsFile) -> bool:
        return not _is_any(_record_of(file))

    def read(self, file: WeightsFile) -> ModelWeights:
        record = _record_of(file)
        if _is_any(record):
            return ModelWeights({BACKBONE + name: each for name, each in file.weights.items()}, record, str(file.path))
        kind = encoder_kind(file.weights)
        if kind is None:
            raise ValueError("it holds no ViT, Beit, Swin or Swin V2 of timm")
        state, rest = to_ours(CLASSIFIERS[kind], file.weights)
        state.update({BACKBONE + name: file.weights[name] for name in rest})
        keys, guessed = metadata.published_heads(state) if kind == "vit" else ({}, {})
        facts = metadata.merge(metadata.classification_sections(state), {"ENCODER": keys}, record)
        guessed = metadata.without_recorded(guessed, record)
        sections, unspecified, guesses = metadata.infer_sections(kind, state, facts, guessed)
        return ModelWeights(state, sections, str(file.path), unspecified, guesses=guesses)

    def write(self, weights: ModelWeights, path: Path) -> WriteReport:
        if _is_any(weights.sections):
            return _write_any(weights, path)
        kind = check_encoder(weights.sections, MODELS, "timm")
        check_keys(weights.sections, "timm's create_model", head_width=0, patch_norm=False, norm_first=True)
        classifier = has_classifier(weights, POOLS[kind])
        if kind == "beit" and not classifier and not weights.sections["ENCODER"]["norm"]:
            raise ValueError("ENCODER.norm is false: timm's Beit has a last norm, or one behind the mean")
        ours = {**weights.select(BACKBONE), **(weights.without(ENCODER) if classifier else {})}
        theirs, backbone = to_theirs(CLASSIFIERS[kind], ours)
        theirs.update({name.removeprefix(BACKBONE): ours[name].contiguous() for name in backbone})
        _write_file(path, theirs, metadata.metadata_of(weights, ours))
        classes = len(weights.state[class_names.BIAS]) if classifier else 0
        keywords = {"checkpoint_path": str(path), **create_arguments(weights.sections, classes)}
        arguments = ", ".join(f"{name}={_code(value)}" for name, value in keywords.items())
        left_out = [name for name in weights.state if name not in ours]
        return WriteReport(left_out, f"timm.create_model({MODELS[kind]!r}, {arguments})")


def _record_of(file: WeightsFile) -> Sections:
    """What the file says of its model: the sections that this toolkit wrote, or timm's config.json."""
    written = metadata.read_metadata(file.metadata)
    return written or timm_hub.sections_of(file.metadata, encoder_kind(file.weights))


def _is_any(sections: Sections) -> bool:
    """Whether the encoder is any model of timm by its name, whose weights have timm's names already."""
    encoder = sections.get("ENCODER")
    return isinstance(encoder, dict) and encoder.get("name") == Encoder.name


def _write_any(weights: ModelWeights, path: Path) -> WriteReport:
    """Writes the weights of ENCODER.name timm, without a classifier, which is this toolkit's own."""
    ours = weights.select(BACKBONE)
    theirs = {name.removeprefix(BACKBONE): weight.contiguous() for name, weight in ours.items()}
    _write_file(path, theirs, metadata.metadata_of(weights, ours))
    model, arguments = model_of(weights.sections)
    keywords = ", ".join(f"{name}={value!r}" for name, value in {"checkpoint_path": str(path), **arguments}.items())
    left_out = [name for name in weights.state if name not in ours]
    return WriteReport(left_out, f"timm.create_model({model!r}, {keywords})")


def _write_file(path: Path, state: dict[str, torch.Tensor], extra: dict[str, str]) -> None:
    if path.suffix == ".safetensors":
        write_atomically(path, lambda file: file.write(save(state, metadata=extra)))
    else:
        write_atomically(path, lambda file: torch.save({"state_dict": state, **extra}, file))


def model_of(sections: Sections) -> tuple[str, dict[str, Any]]:
    """The name of a model of timm and the arguments of timm.create_model for an encoder without a classifier."""
    encoder, data = sections["ENCODER"], sections["DATA"]
    if not _is_any(sections):
        return MODELS[encoder["name"]], create_arguments(sections, 0)
    settings = BackboneSettings(encoder["model"], tuple(encoder.get("options", ())))
    with torch.device("meta"):
        arguments = settings.taken(ImageSpec(data["channels"], *data["image_size"]))
    return encoder["model"].partition(".")[0], arguments


def create_arguments(sections: Sections, classes: int) -> dict[str, Any]:
    """The arguments of timm.create_model for an encoder, with a classifier where `classes` is not 0."""
    encoder, data = sections["ENCODER"], sections["DATA"]
    arguments: dict[str, Any] = {
        "img_size": tuple(data["image_size"]),
        "in_chans": data["channels"],
        "num_classes": classes,
        "patch_size": encoder["patch"],
        "embed_dim": encoder["width"],
        "mlp_ratio": encoder["mlp_ratio"],
        "drop_path_rate": encoder["drop_path"],
    }
    if encoder["name"] in ("swin", "swin_v2"):
        pretrained = tuple(encoder.get("pretrained_windows", ()))
        return {
            **arguments,
            "depths": tuple(encoder["depths"]),
            "num_heads": tuple(encoder["heads"]),
            "window_size": encoder["window"],
            **({"pretrained_window_sizes": pretrained} if any(pretrained) else {}),
        }
    pooled = sections["READOUT"] if classes else {"pool": "class", "norm": "none"}
    has_norm = pooled["norm"] != "none"
    token = encoder.get("class_token", True) and pooled["pool"] == "class"
    arguments |= {"depth": encoder["depth"], "num_heads": encoder["heads"], "global_pool": "token" if token else "avg"}
    if encoder.get("norm_eps", TIMM_EPS) != TIMM_EPS:
        arguments["norm_layer"] = partial(torch.nn.LayerNorm, eps=encoder["norm_eps"])
    if encoder["name"] == "vit":
        norm = {"fc_norm": has_norm, "final_norm": encoder["norm"] or has_norm}
        bias = {} if encoder.get("qkv_bias", True) else {"qkv_bias": False}
        position = {} if encoder.get("class_position", True) else {"no_embed_class": True}
        return {**arguments, "class_token": encoder["class_token"], **norm, **bias, **position}
    shared = encoder["bias"] == "shared"
    arguments |= {"use_rel_pos_bias": not shared, "use_shared_rel_pos_bias": shared}
    return {**arguments, "init_values": encoder["layer_scale"]}


def _code(value: Any) -> str:
    """A value as Python writes it."""
    return (
        f"functools.partial(torch.nn.LayerNorm, eps={value.keywords['eps']})"
        if isinstance(value, partial)
        else repr(value)
    )
