"""The shipped recipes: complete, free of settings without effect, and equal to what the papers and their code say."""

import math
import re
from bisect import bisect_right
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
import yaml
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import nn
from yacs.config import CfgNode

from mim import build, config, load_config
from mim.config import schema
from mim.engine.optim import parameter_groups, unmatched
from mim.engine.schedule import Schedule
from mim.engine.plan import Plan
from mim.model import MaskedImageModel
from mim.readouts.classifier import Classifier

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(
    str(path.relative_to(ROOT)) for path in (ROOT / "configs").glob("**/*.yaml") if "studies" not in path.parts
)
TRAINING_IMAGES = {"folder": 1_281_167, "cifar10": 50_000, "digits": 1_437}  # folder: every such recipe is ImageNet's
CLASSES = {"folder": 1000, "cifar10": 10, "digits": 10}
MAE = ["configs/mae/vit_base.yaml", "configs/mae/vit_large.yaml", "configs/mae/vit_huge.yaml"]
CROSSMAE = "configs/mae/vit_base_cross_attention.yaml"
SIMMIM_800 = ["configs/simmim/swin_base_800ep.yaml", "configs/simmim/swin_large_800ep.yaml"]
SIMMIM = ["configs/simmim/swin_base_100ep.yaml", *SIMMIM_800]
SIMMIM_VIT = "configs/simmim/vit_base_800ep.yaml"
SIMMIM_V2 = "configs/simmim/swin_v2_base_800ep.yaml"  # of microsoft/Swin-Transformer


@cache
def recipe(path: str) -> CfgNode:
    return load_config(ROOT / path)


@cache
def model(path: str) -> MaskedImageModel | Classifier:
    built = build.build_without_memory(recipe(path), CLASSES[recipe(path).DATA.name])
    assert built is not None
    return built


def raw(path: str) -> dict:
    return yaml.safe_load((ROOT / path).read_text())


def plan(path: str, devices: int = 1) -> Plan:
    cfg = recipe(path)
    return Plan.of(build.engine_settings(cfg), TRAINING_IMAGES[cfg.DATA.name], devices)


def schedule(path: str) -> Schedule:
    return plan(path).schedule(build.engine_settings(recipe(path)))


ONE_DEVICE = [path for path in RECIPES if raw(path)["DATA"]["batch_size"] == raw(path)["TRAIN"]["batch"]]

WHERE = {"on_device", "retry_s"}  # say where something is computed and how long is waited for it, not what

# ---------------------------------------------------------------- every recipe


def test_recipes_are_found():
    digits = {"configs/quickstart/mae_digits.yaml", "configs/quickstart/simmim_digits.yaml"}
    assert {*MAE, *SIMMIM, SIMMIM_VIT, SIMMIM_V2, *digits} <= {*RECIPES}


@pytest.mark.parametrize("path", RECIPES)
def test_recipe_loads_and_keeps_its_values(path):
    cfg = recipe(path)
    for section, keys in raw(path).items():
        if not isinstance(keys, dict):
            assert cfg[section] == keys
            continue
        for key, value in keys.items():
            assert cfg[section][key] == value, f"{section}.{key}"


@pytest.mark.parametrize("path", RECIPES)
def test_recipe_states_every_key_its_method_decides(path):
    stated = raw(path)
    task = stated["TASK"]
    assert "SEED" in stated
    for section in schema.sections(task):
        if section in ("INIT", "TRAIN", "EVALUATE", "CHECKPOINT", "LOG", "DISTRIBUTED"):
            continue
        part = ["name"] if section in schema.FAMILIES else []
        wanted = {*part, *schema.section_keys(task, section, stated[section].get("name", ""))}
        assert set(stated[section]) - WHERE == wanted - WHERE, section
    assert {"epochs", "batch", "precision", "clip", "ema"} <= set(stated["TRAIN"])
    assert {"every_epochs"} | ({"crop_pct"} if task != "pretrain" else set()) <= set(stated["EVALUATE"])
    assert "every_epochs" in stated["CHECKPOINT"]
    assert "INIT" not in stated


@pytest.mark.parametrize("path", RECIPES)
def test_recipe_names_the_published_one_that_it_follows(path):
    """Itself, where it is one; and else one that has no other above it, of the same task."""
    named = f"configs/{recipe(path).RECIPE}.yaml"
    assert recipe(named).RECIPE == recipe(path).RECIPE
    assert recipe(named).TASK == recipe(path).TASK
    published = path.split("/")[1] in ("mae", "simmim") or (recipe(path).DATA.name == "folder" and "cross" not in path)
    assert (named == path) == published


@pytest.mark.parametrize("path", RECIPES)
def test_recipe_sections_stand_in_order(path):
    sections = [name for name in raw(path) if name in schema.ORDER]
    assert sections == [name for name in schema.ORDER if name in sections]


@pytest.mark.parametrize("path", RECIPES)
def test_recipe_header_says_how_it_was_run(path):
    text = (ROOT / path).read_text()
    header = re.match(r"(?:#.*\n)+", text)
    assert header is not None
    assert re.match(r"# \S", header[0])
    for field in ("command", "source", "hardware", "time", "result"):
        assert len(re.findall(rf"^# {field}: +\S", header[0], re.MULTILINE)) == 1, field
    commands = re.sub(r"\\\n# +", "", header[0])
    wanted = rf"python tools/train\.py --config {re.escape(path)} --output runs/\w+\n"
    assert re.search(r"^# command: +" + wanted, commands, re.MULTILINE)
    if recipe(path).DATA.name == "folder":
        wanted = wanted.replace("python", r"torchrun --nproc_per_node \d+", 1)
        assert re.search(r"^# +" + wanted, commands, re.MULTILINE)


@pytest.mark.parametrize("path", RECIPES)
def test_recipe_names_no_absolute_path(path):
    # a slash before a word and after none: where a path of somebody's machine would start
    assert not re.findall(r"(?<![\w.)/])/\w+", (ROOT / path).read_text())


@pytest.mark.parametrize("path", RECIPES)
def test_recipe_has_no_setting_without_effect(path):
    optimizer = schema.part(recipe(path), "OPTIMIZER")
    assert schedule(path).warnings() == []
    assert unmatched(model(path), optimizer) == []


@pytest.mark.parametrize("path", ONE_DEVICE)
def test_recipe_whose_step_is_one_micro_batch_offers_no_torchrun(path):
    assert recipe(path).TRAIN.batch <= 128
    assert "torchrun" not in (ROOT / path).read_text()


@pytest.mark.parametrize("path", [path for path in RECIPES if path not in ONE_DEVICE])
def test_recipe_batch_comes_out_whole_on_one_to_eight_devices(path):
    for devices in (1, 2, 4, 8):
        found = plan(path, devices)
        assert found.batch == found.micro * devices * found.accumulation == recipe(path).TRAIN.batch


@pytest.mark.parametrize(
    ("path", "origin", "keys"),
    [
        ("configs/cross/mae_on_replacing_vit.yaml", MAE[0], {"ENCODER.hidden"}),
        (
            "configs/cross/transformer_decoder_on_swin.yaml",
            SIMMIM[0],
            {"HEAD.name", "HEAD.width", "HEAD.depth", "HEAD.heads", "HEAD.mlp_ratio"},
        ),
        (
            "configs/cross/simmim_on_dropping_vit.yaml",
            SIMMIM_VIT,
            {
                *(f"ENCODER.{key}" for key in ("name", "hidden", "positions", "class_token", "drop_path")),
                *(f"ENCODER.{key}" for key in ("bias", "layer_scale")),
                *(f"HEAD.{key}" for key in ("name", "width", "depth", "heads", "mlp_ratio")),
            },
        ),
        ("configs/mae/vit_large.yaml", MAE[0], {"ENCODER.width", "ENCODER.depth", "ENCODER.heads"}),
        (CROSSMAE, MAE[0], {"HEAD.name", "HEAD.depth", "HEAD.share", "OPTIMIZER.base_lr"}),
        (
            "configs/simmim/swin_large_800ep.yaml",
            SIMMIM_800[0],
            {"ENCODER.width", "ENCODER.heads", "ENCODER.window", "DATA.batch_size"},
        ),
        (
            SIMMIM_V2,
            SIMMIM_800[0],
            {
                *(f"ENCODER.{key}" for key in ("name", "window", "pretrained_windows", "drop_path")),
                *("TARGET.normalize", "SCHEDULE.cosine_from"),
            },
        ),
    ],
)
def test_recipe_differs_from_its_origin_only_where_it_says(path, origin, keys):
    differing = {line.partition(":")[0] for line in config.differing(recipe(path), recipe(origin))}
    assert differing - {"RECIPE"} == keys


# ---------------------------------------------------------------- published figures


@pytest.mark.parametrize(
    ("path", "base", "batch", "per_batch"),
    [
        *((path, 1.5e-4, 4096, 256) for path in [*MAE, "configs/cross/mae_on_replacing_vit.yaml"]),
        ("configs/cifar10/mae_vit_tiny.yaml", 1.5e-4, 4096, 256),
        (CROSSMAE, 1.5e-4 * 0.25 / 0.75, 4096, 256),
        (SIMMIM[0], 2e-4, 2048, 512),
        ("configs/cross/transformer_decoder_on_swin.yaml", 2e-4, 2048, 512),
        *((path, 1e-4, 2048, 512) for path in [*SIMMIM_800, SIMMIM_VIT, "configs/cross/simmim_on_dropping_vit.yaml"]),
        (SIMMIM_V2, 1e-4, 2048, 512),
    ],
)
def test_recipe_peak_learning_rate_is_the_published_one(path, base, batch, per_batch):
    assert schedule(path).peak == pytest.approx(base * batch / per_batch, rel=1e-12)


def visible_of_mae(side: int, cell: int, ratio: float) -> tuple[int, int]:
    cells = (side // cell) ** 2
    return int(cells * (1 - ratio)), cells


def visible_of_simmim(side: int, cell: int, ratio: float) -> tuple[int, int]:
    cells = (side // cell) ** 2
    return cells - math.ceil(cells * ratio), cells


@pytest.mark.parametrize(
    ("path", "formula", "published"),
    [
        (MAE[0], visible_of_mae(224, 16, 0.75), (49, 196)),
        (MAE[1], visible_of_mae(224, 16, 0.75), (49, 196)),
        (MAE[2], visible_of_mae(224, 14, 0.75), (64, 256)),
        (CROSSMAE, visible_of_mae(224, 16, 0.75), (49, 196)),
        ("configs/cross/mae_on_replacing_vit.yaml", visible_of_mae(224, 16, 0.75), (49, 196)),
        ("configs/cifar10/mae_vit_tiny.yaml", visible_of_mae(32, 2, 0.75), (64, 256)),
        *((path, visible_of_simmim(192, 32, 0.6), (36 - 22, 36)) for path in [*SIMMIM, SIMMIM_V2]),
        ("configs/cross/transformer_decoder_on_swin.yaml", visible_of_simmim(192, 32, 0.6), (36 - 22, 36)),
        (SIMMIM_VIT, visible_of_simmim(224, 32, 0.6), (49 - 30, 49)),
        ("configs/cross/simmim_on_dropping_vit.yaml", visible_of_simmim(224, 32, 0.6), (49 - 30, 49)),
        ("configs/cifar10/simmim_vit_tiny.yaml", visible_of_simmim(32, 4, 0.6), (64 - 39, 64)),
        ("configs/cifar10/simmim_swin_tiny.yaml", visible_of_simmim(32, 4, 0.6), (64 - 39, 64)),
    ],
)
def test_recipe_visible_cells_are_the_published_ones(path, formula, published):
    masker = model(path).masker
    assert (masker.visible, masker.cells) == formula == published


VIT_B, SWIN_B = "vit_base_patch16_224", "swin_base_patch4_window7_224"
SHARED = {  # models/simmim.py with USE_RPB false, USE_SHARED_RPB true, USE_MEAN_POOLING false; the rest is BEiT's
    "use_rel_pos_bias": False,
    "use_shared_rel_pos_bias": True,
    "global_pool": "token",
}


@pytest.mark.parametrize(
    ("path", "name", "size", "millions"),
    [
        (MAE[0], VIT_B, {}, 85.8),
        (MAE[1], "vit_large_patch16_224", {}, 303.3),
        (MAE[2], "vit_huge_patch14_224", {}, 630.8),
        ("configs/cross/mae_on_replacing_vit.yaml", VIT_B, {}, 85.8),
        ("configs/cross/simmim_on_dropping_vit.yaml", VIT_B, {}, 85.8),
        (SIMMIM[0], SWIN_B, {"img_size": 192, "window_size": 6}, 86.7),
        (SIMMIM[1], SWIN_B, {"img_size": 192, "window_size": 6}, 86.7),
        (SIMMIM[2], "swin_large_patch4_window7_224", {"img_size": 192, "window_size": 12}, 195.2),
        (SIMMIM_VIT, "beit_base_patch16_224", SHARED, 85.7),
        (SIMMIM_V2, "swinv2_base_window12_192", {}, 86.9),
        ("configs/cross/transformer_decoder_on_swin.yaml", SWIN_B, {"img_size": 192, "window_size": 6}, 86.7),
    ],
)
def test_recipe_encoder_is_the_one_of_timm(path, name, size, millions):
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=0, **size)
    encoder = model(path).encoder
    shapes = {name: parameter.shape for name, parameter in encoder.backbone.named_parameters()}
    assert shapes == {name: parameter.shape for name, parameter in theirs.named_parameters()}
    assert round(sum(map(math.prod, shapes.values())) / 1e6, 1) == millions
    heads = [[part.num_heads for part in net.modules() if hasattr(part, "num_heads")] for net in (encoder, theirs)]
    assert heads[0] == heads[1]
    assert len(heads[0]) >= 12
    masks = 0 if encoder.mask_token is None else encoder.mask_token.numel()
    assert sum(parameter.numel() for parameter in encoder.parameters()) == sum(map(math.prod, shapes.values())) + masks


def test_crossmae_decodes_as_many_places_as_its_source():
    # models_cross.py, random_masking with the published --mask_ratio 0.75 --kept_mask_ratio 0.25, and mask_tokens_grid
    length, mask_ratio, kept_mask_ratio = 196, 0.75, 0.25
    theirs = length - int(length * (1 - mask_ratio)) - int(length * (mask_ratio - kept_mask_ratio))
    built, shapes, img = model(CROSSMAE), [], torch.empty(2, 3, 224, 224, device="meta")
    hook = built.head.predict.register_forward_hook(lambda module, given, answer: shapes.append(answer.shape))
    built(img, built.sample_mask(img))
    hook.remove()
    assert shapes == [(2, theirs, 16 * 16 * 3)]
    assert theirs == 49
    assert len(built.head.layers) == 12  # --decoder_depth


def test_simmim_vit_is_pretrained_with_the_published_layer_scale_and_drop_path():
    # config.py, VIT.INIT_VALUES; the recipe's DROP_PATH_RATE; models/vision_transformer.py
    built, cfg = model(SIMMIM_VIT), recipe(SIMMIM_VIT)
    blocks = built.encoder.blocks()
    rates = [[getattr(path, "drop_prob", 0.0) for path in (block.drop_path1, block.drop_path2)] for block in blocks]
    assert torch.tensor(rates) == pytest.approx(torch.linspace(0, 0.1, 12)[:, None].expand(12, 2))
    assert {block.init_values for block in blocks} == {0.1} == {cfg.ENCODER.layer_scale}
    assert {norm.eps for norm in built.encoder.modules() if isinstance(norm, nn.LayerNorm)} == {1e-6}
    assert {name: weight.shape for name, weight in built.head.named_parameters()} == {
        "conv.weight": (16 * 16 * 3, 768, 1, 1),
        "conv.bias": (16 * 16 * 3,),
    }


def test_simmim_swin_v2_has_the_published_windows_drop_path_and_target():
    # configs/simmim/simmim_pretrain__swinv2_base__img192_window12__800ep.yaml
    built = model(SIMMIM_V2)
    blocks = built.encoder.blocks()
    assert [block.attn.window_size for block in blocks] == [(12, 12)] * 22 + [(6, 6)] * 2
    assert {block.attn.pretrained_window_size for block in blocks} == {(0, 0)}
    rates = [[getattr(path, "drop_prob", 0.0) for path in (block.drop_path1, block.drop_path2)] for block in blocks]
    assert torch.tensor(rates) == pytest.approx(torch.linspace(0, 0.1, 24)[:, None].expand(24, 2))
    assert (built.target.normalize, built.target.window) == ("window", 47)
    assert {name: weight.shape for name, weight in built.head.named_parameters()} == {
        "conv.weight": (32 * 32 * 3, 1024, 1, 1),
        "conv.bias": (32 * 32 * 3,),
    }


def simmim_vit_layer(name: str, depth: int) -> int:
    # optimizer.py, get_vit_layer, with num_layers = depth + 2
    if name in ("cls_token", "mask_token", "pos_embed") or name.startswith("patch_embed"):
        return 0
    if name.startswith("rel_pos_bias"):
        return depth + 1
    return int(name.split(".")[1]) + 1 if name.startswith("blocks") else depth + 1


def test_simmim_vit_layer_ids_are_those_of_its_optimizer():
    encoder = model(SIMMIM_VIT).encoder
    found = {name.removeprefix("backbone."): layer for name, layer in encoder.layer_ids().items()}
    assert found == {name: simmim_vit_layer(name, 12) for name in found}
    assert found["mask_token"] == found["cls_token"] == found["patch_embed.proj.weight"] == 0
    assert found["rel_pos_bias.relative_position_bias_table"] == found["norm.weight"] == encoder.top_layer == 13


# ---------------------------------------------------------------- schedules


@pytest.mark.parametrize("path", MAE)
def test_mae_learning_rate_follows_the_fractional_epoch(path):
    # main_pretrain.py, engine_pretrain.py, util/lr_sched.py
    per_epoch = 1_281_167 // 4096
    assert plan(path).steps_per_epoch == per_epoch == 312
    assert plan(path).steps == 800 * per_epoch
    found = schedule(path)
    peak, warmup, epochs = 1.5e-4 * 4096 / 256, 40, 800
    for epoch, step in [(0, 0), (0, 1), (3, 100), (39, 311), (40, 0), (40, 1), (400, 155), (799, 0), (799, 311)]:
        place = step / per_epoch + epoch
        if place < warmup:
            wanted = peak * place / warmup
        else:
            wanted = peak * 0.5 * (1 + math.cos(math.pi * (place - warmup) / (epochs - warmup)))
        assert found.at(epoch * per_epoch + step) == pytest.approx(wanted, rel=1e-9, abs=1e-18)
    assert found.at(0) == 0
    assert found.at(40 * per_epoch) == pytest.approx(2.4e-3)


def test_simmim_cosine_is_the_one_of_timm_without_warmup_prefix():
    # lr_scheduler.py; main_simmim.py calls step_update(step) after the optimizer's step
    per_epoch, scale = 1_281_167 // 2048, 2048 / 512
    assert plan(SIMMIM[0]).steps_per_epoch == per_epoch == 625
    found = schedule(SIMMIM[0])
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2e-4 * scale)
    theirs = CosineLRScheduler(
        optimizer,
        t_initial=100 * per_epoch,
        lr_min=1e-5 * scale,
        warmup_lr_init=1e-6 * scale,
        warmup_t=10 * per_epoch,
        cycle_limit=1,
        t_in_epochs=False,
    )
    assert found.at(0) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
    for step in (1, 2, 3000, 10 * per_epoch, 10 * per_epoch + 1, 31_250, 50_000, 100 * per_epoch - 1):
        theirs.step_update(step - 1)
        assert found.at(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), step


def test_simmim_cosine_joins_below_the_peak_and_trails_a_step():
    per_epoch, peak, least, first = 625, 8e-4, 4e-5, 4e-6
    found = schedule(SIMMIM[0])
    assert found.at(0) == found.at(1) == pytest.approx(first)
    assert found.at(2) == pytest.approx(first + (peak - first) / (10 * per_epoch))
    assert found.at(10 * per_epoch) == pytest.approx(peak - (peak - first) / (10 * per_epoch))
    joined = least + (peak - least) * 0.5 * (1 + math.cos(math.pi * 10 / 100))
    assert found.at(10 * per_epoch + 1) == pytest.approx(joined, rel=1e-12)
    assert joined / peak == pytest.approx(0.977, abs=5e-4)


@pytest.mark.parametrize("path", [*SIMMIM_800, SIMMIM_VIT, SIMMIM_V2, "configs/cross/simmim_on_dropping_vit.yaml"])
def test_simmim_multistep_drops_at_epoch_700(path):
    per_epoch, peak, first = 625, 1e-4 * 2048 / 512, 5e-7 * 2048 / 512
    found = schedule(path)
    assert plan(path).steps == 800 * per_epoch

    def theirs(update: int) -> float:  # lr_scheduler.py, MultiStepLRScheduler._get_lr
        if update < 10 * per_epoch:
            return first + update * (peak - first) / (10 * per_epoch)
        return peak * 0.1 ** bisect_right([700 * per_epoch], update)

    for step in (1, 2, 3125, 6250, 6251, 6252, 700 * per_epoch, 700 * per_epoch + 1, 800 * per_epoch - 1):
        assert found.at(step) == pytest.approx(theirs(step - 1), rel=1e-9), step
    assert found.at(0) == found.at(1) == pytest.approx(2e-6)
    assert found.at(700 * per_epoch) == pytest.approx(4e-4)
    assert found.at(700 * per_epoch + 1) == pytest.approx(4e-5)


def test_cifar10_mae_learning_rate_is_near_the_one_of_its_source():
    # IcarusWizard/MAE, mae_pretrain.py: once an epoch, the smaller of a warmup and a cosine from epoch 0
    found, per_epoch = schedule("configs/cifar10/mae_vit_tiny.yaml"), 50_000 // 4096
    for epoch in range(0, 2000, 50):
        wanted = 2.4e-3 * min((epoch + 1) / 200, 0.5 * (math.cos(epoch / 2000 * math.pi) + 1))
        assert found.at(epoch * per_epoch + per_epoch - 1) == pytest.approx(wanted, abs=2.4e-3 / 1000)


# ---------------------------------------------------------------- optimizers


def decayed(path: str) -> dict[str, float]:
    """The weight decay of each trained parameter, by name."""
    built = model(path)
    names = {id(parameter): name for name, parameter in built.named_parameters()}
    groups = parameter_groups(built, schema.part(recipe(path), "OPTIMIZER"), {})
    return {names[id(parameter)]: group["weight_decay"] for group in groups for parameter in group["params"]}


@pytest.mark.parametrize("path", MAE)
def test_mae_decays_class_and_mask_token(path):
    decay = decayed(path)
    assert decay["encoder.backbone.cls_token"] == decay["head.mask_token"] == 0.05
    shapes = {name: parameter.shape for name, parameter in model(path).named_parameters() if parameter.requires_grad}
    assert set(shapes) == set(decay)
    assert {name for name, value in decay.items() if value == 0} == {n for n, shape in shapes.items() if len(shape) < 2}
    assert {name for name in decay if name.endswith(".bias")} <= {name for name, value in decay.items() if value == 0}
    assert set(decay.values()) == {0.0, 0.05}


@pytest.mark.parametrize("path", SIMMIM)
def test_simmim_swin_exempts_the_mask_token_and_decays_bias_tables(path):
    decay = decayed(path)
    assert decay["encoder.mask_token"] == 0
    tables = [name for name in decay if name.endswith("relative_position_bias_table")]
    assert len(tables) == 2 + 2 + 18 + 2
    assert {decay[name] for name in tables} == {0.05}
    assert {value for name, value in decay.items() if name.endswith(".bias") or ".norm" in name} == {0.0}


def test_simmim_swin_v2_exempts_the_mask_token_and_decays_its_scales_and_networks_of_distance():
    # models/simmim.py gives cpb_mlp and logit_scale the prefix "encoder.", which no name holds
    shapes = {name: parameter.shape for name, parameter in model(SIMMIM_V2).named_parameters()}
    exempt = {name for name, shape in shapes.items() if len(shape) == 1 or name == "encoder.mask_token"}
    decay = decayed(SIMMIM_V2)
    assert decay == {name: 0.0 if name in exempt else 0.05 for name in shapes}
    for ends, value in (
        (("logit_scale", "cpb_mlp.0.weight", "cpb_mlp.2.weight"), 0.05),
        (("q_bias", "v_bias", "cpb_mlp.0.bias"), 0.0),
    ):
        found = [decay[name] for name in decay if name.endswith(ends)]
        assert (len(found), set(found)) == (3 * 24, {value})


@pytest.mark.parametrize("path", ["configs/cross/simmim_on_dropping_vit.yaml", "configs/cifar10/simmim_vit_tiny.yaml"])
def test_simmim_vit_exempts_the_class_token_and_decays_mask_tokens(path):
    decay = decayed(path)
    assert decay["encoder.backbone.cls_token"] == 0
    assert {decay[name] for name in decay if name.endswith("mask_token")} == {0.05}
    assert decay.get("encoder.backbone.pos_embed", 0) == 0


def test_simmim_vit_of_its_own_decays_its_mask_token_and_bias_table():
    # optimizer.py, get_pretrain_param_groups; models/vision_transformer.py, no_weight_decay
    shapes = {name: parameter.shape for name, parameter in model(SIMMIM_VIT).named_parameters()}
    exempt = {name for name, shape in shapes.items() if len(shape) == 1 or name == "encoder.backbone.cls_token"}
    decay = decayed(SIMMIM_VIT)
    assert decay == {name: 0.0 if name in exempt else 0.05 for name in shapes}
    assert decay["encoder.mask_token"] == 0.05
    assert [decay[name] for name in decay if name.endswith("relative_position_bias_table")] == [0.05]
    assert {decay[name] for name in decay if name.endswith(("_bias", ".bias")) or "gamma" in name} == {0.0}


@pytest.mark.parametrize(
    ("path", "betas", "eps", "clip"),
    [
        *((path, [0.9, 0.95], 1e-8, 0) for path in [*MAE, CROSSMAE, "configs/cross/mae_on_replacing_vit.yaml"]),
        *((path, [0.9, 0.999], 1e-8, 5) for path in [*SIMMIM, SIMMIM_VIT, SIMMIM_V2]),
        ("configs/cross/simmim_on_dropping_vit.yaml", [0.9, 0.999], 1e-8, 5),
        ("configs/cross/transformer_decoder_on_swin.yaml", [0.9, 0.999], 1e-8, 5),
        ("configs/cifar10/mae_vit_tiny.yaml", [0.9, 0.95], 1e-8, 0),
    ],
)
def test_recipe_optimizer_is_the_published_one(path, betas, eps, clip):
    cfg = recipe(path)
    assert (cfg.OPTIMIZER.name, cfg.OPTIMIZER.betas, cfg.OPTIMIZER.eps) == ("adamw", betas, eps)
    assert (cfg.OPTIMIZER.weight_decay, cfg.TRAIN.clip) == (0.05, clip)


MAE_CROPS, SIMMIM_CROPS = ([0.2, 1.0], "bicubic"), ([0.67, 1.0], "bilinear")


@pytest.mark.parametrize(
    ("path", "crops", "epochs", "target"),
    [
        (CROSSMAE, MAE_CROPS, 800, ("patch", "mse", 0)),
        *((path, MAE_CROPS, 800, ("patch", "mse", 0)) for path in [*MAE, "configs/cross/mae_on_replacing_vit.yaml"]),
        (SIMMIM[0], SIMMIM_CROPS, 100, ("none", "l1", 1e-5)),
        ("configs/cross/transformer_decoder_on_swin.yaml", SIMMIM_CROPS, 100, ("none", "l1", 1e-5)),
        *((path, SIMMIM_CROPS, 800, ("none", "l1", 1e-5)) for path in [*SIMMIM_800, SIMMIM_VIT]),
        ("configs/cross/simmim_on_dropping_vit.yaml", SIMMIM_CROPS, 800, ("none", "l1", 1e-5)),
        (SIMMIM_V2, SIMMIM_CROPS, 800, ("window", "l1", 1e-5)),
    ],
)
def test_recipe_crops_epochs_and_target_are_the_published_ones(path, crops, epochs, target):
    cfg = recipe(path)
    assert (cfg.AUGMENT.crop_scale, cfg.AUGMENT.interpolation) == crops
    assert (cfg.AUGMENT.flip, cfg.AUGMENT.crop_ratio) == (0.5, pytest.approx([3 / 4, 4 / 3]))
    assert (cfg.DATA.mean, cfg.DATA.std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert cfg.TRAIN.epochs == epochs
    assert (cfg.TARGET.normalize, cfg.LOSS.name, cfg.LOSS.eps) == target
    assert (cfg.TARGET.stride, cfg.LOSS.over) == (1, "hidden")
