"""Converting: to MAE, SimMIM and timm and back, to the bit; official files; other sizes; what is refused.

transformers has a module of its own, test_convert_transformers.
"""

import re
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from converted import CLASSES, MODELS, VARIANTS, assert_round_trip, sample
from timm.models import beit as timm_beit
from timm.models import swin_transformer, swin_transformer_v2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mim.convert import convert
from mim.interop.names import fold_names

NORM = partial(nn.LayerNorm, eps=1e-6)


def call_of(lines: list[str]) -> str:
    """What the last line of a report says to load the result by."""
    assert lines[-1].startswith("  to load: ")
    return lines[-1].removeprefix("  to load: ")


def convolved(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The encoder of a SimMIM pretraining, as its own fine-tuning takes it."""
    names = [name for name in weights if name.startswith(prefix) and name != f"{prefix}mask_token"]
    return {name.removeprefix(prefix): weights[name] for name in names}


# -------------------------------------------------------------------- their own libraries


def mae_model(lines: list[str], cfg, classes: int) -> nn.Module:
    """models_vit.py is timm's VisionTransformer, but for the names of its pooling; models_mae.py has its encoder."""
    weights = eval(call_of(lines).partition(" fits ")[0], {"torch": torch})
    encoder = {name: weight for name, weight in weights.items() if "decoder" not in name and name != "mask_token"}
    keys = cfg.ENCODER
    model = VisionTransformer(
        img_size=tuple(cfg.DATA.image_size),
        patch_size=keys.patch,
        in_chans=cfg.DATA.channels,
        embed_dim=keys.width,
        depth=keys.depth,
        num_heads=keys.heads,
        mlp_ratio=keys.mlp_ratio,
        num_classes=classes,
        global_pool="avg" if "fc_norm.weight" in weights else "token",
        norm_layer=NORM,
    )
    if "head.0.running_mean" in weights:
        model.head = nn.Sequential(nn.BatchNorm1d(keys.width, affine=False, eps=1e-6), nn.Linear(keys.width, classes))
    model.load_state_dict(encoder, strict=True)
    return model


def simmim_model(lines: list[str], cfg, classes: int) -> nn.Module:
    """timm reads the layout of official Swins by itself; SimMIM's ViT is a Beit."""
    weights = eval(call_of(lines).partition(" fits ")[0], {"torch": torch})
    pretraining = cfg.TASK == "pretrain"
    encoder = convolved(weights, "encoder." if pretraining else "")
    if pretraining:
        shuffle = cfg.HEAD.name == "pixel_shuffle" and not cfg.HEAD.stages
        heads = {"decoder.0.weight", "decoder.0.bias"} if shuffle else set()
        assert {name for name in weights if not name.startswith("encoder.")} == heads
        assert "encoder.mask_token" in weights
    keys = cfg.ENCODER
    shared = {
        "img_size": tuple(cfg.DATA.image_size),
        "patch_size": keys.patch,
        "in_chans": cfg.DATA.channels,
        "embed_dim": keys.width,
        "mlp_ratio": keys.mlp_ratio,
        "num_classes": classes,
    }
    if keys.name == "beit":
        mean = "fc_norm.weight" in weights
        bias = {"use_rel_pos_bias": keys.bias == "block", "use_shared_rel_pos_bias": keys.bias == "shared"}
        model = timm_beit.Beit(
            depth=keys.depth,
            num_heads=keys.heads,
            init_values=keys.layer_scale or None,
            use_abs_pos_emb=False,
            global_pool="avg" if mean else "token",
            norm_layer=NORM,
            **bias,
            **shared,
        )
        model.load_state_dict(encoder, strict=True)
        return model
    library, kind = (
        (swin_transformer, swin_transformer.SwinTransformer)
        if keys.name == "swin"
        else (swin_transformer_v2, swin_transformer_v2.SwinTransformerV2)
    )
    windows = (
        {"pretrained_window_sizes": tuple(keys.pretrained_windows)} if keys.values().get("pretrained_windows") else {}
    )
    stages = {"depths": tuple(keys.depths), "num_heads": tuple(keys.heads), "window_size": keys.window}
    model = kind(**stages, **windows, **shared)
    assert "layers.0.downsample.reduction.weight" in encoder
    model.load_state_dict(library.checkpoint_filter_fn(encoder, model), strict=True)
    return model


def timm_model(lines: list[str], cfg, classes: int) -> nn.Module:
    """The very call that the report prints, which loads strictly."""
    return eval(call_of(lines), {"timm": timm})


THEIRS = {"mae": mae_model, "simmim": simmim_model, "timm": timm_model}
HEAD, MASKING, CLASSIFIER = ("head.",), ("encoder.mask_token", "head."), ("readouts.",)
HEADS_ONLY = re.compile("-decoder|-fused")  # timm takes the encoder, which another model converts as well
CASES = [  # format, model, and what of the model the format has no place for
    *(("mae", name, ()) for name in ("mae", "mae-two-targets", "mae-tall-grey", "mae-wide-many")),
    *(("mae", name, MASKING) for name in ("vit-replaced", "vit-replaced-decoder", "mae-fused")),
    *(("mae", name, ()) for name in ("vit-mean", "vit-mean-grey", "vit-class", "vit-class-many", "vit-probe")),
    *(("mae", name, CLASSIFIER) for name in ("vit-mean-of-normed", "vit-two-norms", "vit-probe-mean")),
    *(("simmim", name, ()) for name in ("swin", "swin-wide-many", "swin-one-window", "swin-mean", "swin-mean-many")),
    *(("simmim", name, HEAD) for name in ("swin-decoder", "beit-decoder", "swin-fused")),
    *(("simmim", name, ()) for name in ("swin_v2", "swin_v2-wide-grey", "swin_v2-mean")),
    *(("simmim", name, ()) for name in ("beit", "beit-wide-many", "beit-mean", "beit-class")),
    ("simmim", "swin-two-norms", CLASSIFIER),
    *(("timm", name, MASKING) for name in MODELS if MODELS[name]["TASK"] == "pretrain"),
    *(("timm", name, CLASSIFIER) for name in ("vit-two-norms", "vit-probe", "vit-probe-mean", "swin-two-norms")),
    *(("timm", name, ()) for name in ("vit-mean", "vit-mean-grey", "vit-class", "vit-class-many")),
    *(("timm", name, ()) for name in ("vit-mean-of-normed", "vit-no-class", "vit-no-class-normed")),
    *(("timm", name, ()) for name in ("swin-mean", "swin-mean-many", "swin_v2-mean", "beit-mean", "beit-class")),
]


@pytest.mark.parametrize(
    ("to", "suffix", "model", "absent"),
    [
        pytest.param(
            *(to, ".safetensors" if to == "timm" and index % 2 else ".pth", model, absent),
            marks=pytest.mark.slow if model in VARIANTS or (to == "timm" and HEADS_ONLY.search(model)) else [],
        )
        for index, (to, model, absent) in enumerate(CASES)
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_convert_there_and_back(tmp_path: Path, to: str, suffix: str, model: str, absent: tuple[str, ...]) -> None:
    """Their own library loads it strictly and computes the same; what comes back is ours, to the bit."""
    source, theirs = sample(model), tmp_path / f"theirs{suffix}"
    lines = convert(source.write(tmp_path / "ours.pt"), theirs, to)
    left_out = [name for name in source.state if name.startswith(absent)] if absent else []
    assert f"{theirs} ({to}): {len(source.state) - len(left_out)} weights written" in lines
    matches = [line for line in lines if line.endswith(f"left out: {fold_names(left_out)}")]
    assert len(matches) == bool(left_out)

    classified = "readouts.0.linear.weight" in source.state and not left_out
    loaded, img_BCHW = THEIRS[to](lines, source.cfg, CLASSES if classified else 0).eval(), source.images()
    with torch.no_grad():
        features = loaded.forward_features(img_BCHW)
        features = features.flatten(1, 2) if features.ndim == 4 else features
        torch.testing.assert_close(features, source.features(img_BCHW), rtol=1e-5, atol=1e-5)
        if classified:
            torch.testing.assert_close(loaded(img_BCHW), source.scores(img_BCHW), rtol=1e-5, atol=1e-5)

    convert(theirs, tmp_path / "back.pt", "mim")
    assert_round_trip(tmp_path / "back.pt", source, left_out)
