"""The shipped recipes: complete, in order, free of settings without effect, and derived from each other as they say."""

import re
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
import yaml
from small_models import classes

from mim import build, config, load_config
from mim.config import schema
from mim.data.labels.settings import LabelSettings
from mim.engine.optim import unmatched
from mim.engine.plan import Plan
from mim.io.sections import flatten, places

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
NAMES = sorted(
    path.relative_to(CONFIGS).with_suffix("").as_posix()
    for path in CONFIGS.glob("**/*.yaml")
    if "studies" not in path.parts
)
CLASSIFIERS = [name for name in NAMES if name.startswith(("finetune/", "probe/"))]
TRAINING_IMAGES = {"folder": 1_281_167, "cifar10": 50_000, "digits": 1_437, "solar": 1_850}  # folder: ImageNet
CLASSES = {"folder": 1000, "cifar10": 10, "digits": 10, "solar": 2}
# say where and how something is read or computed, not what
WHERE = {"on_device", "retry_s", "index", "nodata", "missing", "pages", "channels_from", "keep_features", "features"}
OF_ENCODER = {"class_position", "qkv_bias", "head_width", "patch_norm", "norm_first", "norm_eps"}
OF_ENCODER |= {"linear_init", "init_std"}
OF_DECODER = {"output", "norm", "norm_eps", "positions", "linear_init", "init_std"}
OF_TRANSFORMER = {"embed", "positions_of", "qkv_bias", "head_width"}
# what MAE and SimMIM leave at the defaults: recipes of other models state these keys
DETAILS = {("ENCODER", key) for key in OF_ENCODER} | {("HEAD", key) for key in OF_DECODER | OF_TRANSFORMER | {"stages"}}
DETAILS |= {("DATA", "masks"), ("TARGET", "weight"), ("OPTIMIZER", "weight_decay_end")}  # one of each
DETAILS |= {("AUGMENT", "crop"), ("DATA", "scale")}
# their defaults do for any method
EVERY_RUN = ("AUGMENTATION", "INIT", "TRAIN", "EVALUATE", "CHECKPOINT", "LOG", "DISTRIBUTED")


def images_of(name: str) -> str:
    """A key of TRAINING_IMAGES."""
    return "solar" if "solar" in name else recipe(name).DATA.name


def text(name: str) -> str:
    return (CONFIGS / f"{name}.yaml").read_text()


@cache
def raw(name: str) -> dict:
    return yaml.safe_load(text(name))


@cache
def recipe(name: str):
    return load_config(CONFIGS / f"{name}.yaml")


@cache
def model(name: str):
    return build.build_without_memory(recipe(name), classes(CLASSES[images_of(name)]))


def plan(name: str, devices: int = 1) -> Plan:
    cfg = recipe(name)
    return Plan.of(build.engine_settings(cfg), TRAINING_IMAGES[images_of(name)], devices)


def plain(value: object) -> object:
    """Tuples as lists, as YAML has them."""
    return list(value) if isinstance(value, tuple) else value


def without_effect(stated: dict) -> set[tuple[str, str]]:
    """Keys that the values of others leave without effect, as place and key: no recipe states them."""
    of_normalize = {"none": ("patch", "window"), "patch": ("window",), "window": ("patch",)}
    targets = places("TARGET", stated.get("TARGET", {}))
    keys = {(place, key) for place, of in targets.items() for key in of_normalize.get(of.get("normalize"), ())}
    simple = stated["AUGMENT"].get("crop") == "simple"
    of_classes = ("share", "per_class", "seed", *stated.get("LABELS", ()))  # others are of tables and masks
    keys |= {("LABELS", field.name) for field in fields(LabelSettings) if field.name not in of_classes}
    keys |= {("AUGMENT", key) for key in (("crop_scale", "crop_ratio") if simple else ("padding",))}
    if stated["DATA"]["name"] == "digits":
        keys.add(("DATA", "path"))
    if not simple and stated["AUGMENT"]["crop_scale"] == stated["AUGMENT"]["crop_ratio"] == [1, 1]:
        keys.add(("AUGMENT", "interpolation"))
    if stated["OPTIMIZER"]["layer_decay"] == 1 and stated["TASK"] != "probe":
        keys.add(("SCHEDULE", "lr_scale_on"))
    return keys


@pytest.mark.parametrize("name", NAMES)
def test_recipe_keeps_its_values_and_states_every_key_its_method_decides(name):
    stated, cfg = raw(name), recipe(name)
    sections = [section for section in stated if section in schema.ORDER]
    assert sections == [section for section in schema.ORDER if section in sections]
    assert "SEED" in stated
    published = stated["RECIPE"] == name
    descends = stated["TASK"] != "pretrain" and not published  # it may be for any run
    assert stated.get("INIT") == ({"take": ["ENCODER", "DATA"]} if descends else None)
    flat, task = cfg.flat(), stated["TASK"]
    for key, value in flatten(stated).items():
        assert plain(flat[key]) == value, key
    for section in set(schema.sections(task)) - set(EVERY_RUN):
        for place, keys in places(section, stated[section]).items():
            part = ["name"] if section in schema.FAMILIES else []
            expected = {*part, *schema.section_keys(task, section, keys.get("name", ""))}
            expected -= WHERE | {key for owner, key in without_effect(stated) if owner == place}
            details = {key for owner, key in DETAILS if owner == section} & expected
            assert (set(keys) - WHERE) | details == expected, place
    assert {"epochs", "batch", "precision", "clip", "ema"} <= set(stated["TRAIN"])
    assert {"every_epochs"} | ({"crop_pct"} if task != "pretrain" else set()) <= set(stated["EVALUATE"])
    assert "every_epochs" in stated["CHECKPOINT"]


@pytest.mark.parametrize("name", NAMES)
def test_recipe_has_no_setting_without_effect(name):
    settings = build.engine_settings(recipe(name))
    assert plan(name).schedule(settings).warnings() == []
    assert unmatched(model(name), settings.optimizer) == []


@pytest.mark.parametrize("name", NAMES)
def test_recipe_batch_comes_out_whole_on_as_many_devices_as_it_offers(name):
    train, data = recipe(name).TRAIN, recipe(name).DATA
    if data.batch_size == train.batch:
        assert train.batch <= 128
        assert "torchrun" not in text(name), "one micro-batch a step leaves nothing for a second device"
        return
    for devices in (1, 2, 4, 8):
        split = plan(name, devices)
        assert split.batch == split.micro_batch * devices * split.accumulation == train.batch


@pytest.mark.parametrize("name", NAMES)
def test_recipe_names_the_published_one_that_it_follows(name):
    """Itself, where it is one; and else one that has no other above it, of the same task."""
    named = recipe(name).RECIPE
    assert named == recipe(named).RECIPE
    assert recipe(named).TASK == recipe(name).TASK
    folder = name.split("/")[0]
    published = folder in ("mae", "simmim") or (images_of(name) == "folder" and folder != "cross")
    assert (named == name) == published


@pytest.mark.parametrize("name", NAMES)
def test_recipe_header_says_how_it_was_run(name):
    path = f"configs/{name}.yaml"
    header = re.match(r"(?:#.*\n)+", text(name))
    assert header is not None
    assert re.match(r"# \S", header[0])
    for field in ("command", "source", "hardware", "time", "result"):
        assert len(re.findall(rf"^# {field}: +\S", header[0], re.MULTILINE)) == 1, field
    commands = re.sub(r"\\\n# +", "", header[0])
    train = rf"python tools/train\.py --config {re.escape(path)} --output runs/\w+\n"
    assert re.search(r"^# command: +" + train, commands, re.MULTILINE)
    if images_of(name) == "folder":
        torchrun = train.replace("python", r"torchrun --nproc_per_node \d+", 1)
        assert re.search(r"^# +" + torchrun, commands, re.MULTILINE)
    # a slash before a word and after none: where a path of somebody's machine would start
    assert not re.findall(r"(?<![\w.)/])/\w+", text(name))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_recipe_starts_from_the_last_checkpoint_of_a_recipe_that_fits(name):
    weights = r"^# From a pretrained run: INIT\.checkpoint runs/(?:\w+/)?(\w+)/checkpoints/step-(\d+)\.pt$"
    run, step = re.search(weights, text(name), re.MULTILINE).groups()
    (origin,) = [other for other in NAMES if f"--output runs/{run}\n" in text(other)]
    ours, theirs = recipe(name), recipe(origin)
    assert int(step) == plan(origin).steps
    assert (theirs.TASK, theirs.DATA.name) == ("pretrain", ours.DATA.name)
    for key in ("mean", "std", "channels"):
        assert getattr(ours.DATA, key) == getattr(theirs.DATA, key), key
    pretrained = model(origin).encoder.state_dict()
    for key, weight in model(name).encoder.state_dict().items():
        if "relative_position_bias_table" not in key and not key.endswith("attn_mask"):  # resized; made anew
            assert weight.shape == pretrained[key].shape, key
    differing = {line.partition(":")[0] for line in config.differing(ours, theirs)}
    assert {key.removeprefix("ENCODER.") for key in differing if key.startswith("ENCODER.")} <= {
        *("hidden", "positions", "norm", "drop_path", "window", "pretrained_windows", "bias")
    }


SIZE = "ENCODER.width ENCODER.depth ENCODER.heads"
OWN_OF_TRANSFORMER = " ".join(f"HEAD.{key}" for key in OF_TRANSFORMER)
OWN_OF_VIT = " ".join(f"ENCODER.{key}" for key in OF_ENCODER - {"norm_eps"})
DECODER = "HEAD.name HEAD.width HEAD.depth HEAD.heads HEAD.mlp_ratio " + " ".join(
    f"HEAD.{key}" for key in OF_DECODER | OF_TRANSFORMER
)
OF_HOG = "TARGET.name TARGET.normalize TARGET.stride TARGET.patch TARGET.window TARGET.bins TARGET.cell"
OF_BLOCK = "MASKER.name MASKER.ratio MASKER.rounding MASKER.min_cells MASKER.max_aspect"
SIBLINGS = {  # recipe: another one, and the keys in which the two differ
    "cross/mae_on_replacing_vit": ("mae/vit_base", "ENCODER.hidden TRAIN.precision"),
    "cross/transformer_decoder_on_swin": ("simmim/swin_base_100ep", f"{DECODER} TRAIN.precision"),
    "cross/simmim_on_dropping_vit": (
        "simmim/vit_base_800ep",
        f"{DECODER} {OWN_OF_VIT} ENCODER.name ENCODER.hidden ENCODER.positions ENCODER.class_token ENCODER.drop_path "
        "ENCODER.bias ENCODER.layer_scale TRAIN.precision",
    ),
    "mae/vit_large": ("mae/vit_base", SIZE),
    "mae/vit_base_cross_attention": (
        "mae/vit_base",
        f"{OWN_OF_TRANSFORMER} HEAD.name HEAD.depth HEAD.share OPTIMIZER.base_lr",
    ),
    "targets/pixmim_vit_base": (
        "mae/vit_base",
        "AUGMENT.crop AUGMENT.interpolation TARGET.name TARGET.radius OPTIMIZER.no_decay SCHEDULE.warmup_lr",
    ),
    "cifar10/lowpass_vit_tiny": ("cifar10/mae_vit_tiny", "TARGET.name TARGET.radius"),
    "digits/lowpass": ("quickstart/mae_digits", "TARGET.name TARGET.radius"),
    "digits/hog": (
        "quickstart/mae_digits",
        f"{DECODER} {OF_HOG} {OF_BLOCK} ENCODER.hidden ENCODER.positions ENCODER.linear_init",
    ),
    "simmim/swin_large_800ep": (
        "simmim/swin_base_800ep",
        "ENCODER.width ENCODER.heads ENCODER.window DATA.batch_size",
    ),
    "simmim/swin_v2_base_800ep": (
        "simmim/swin_base_800ep",
        "ENCODER.name ENCODER.window ENCODER.pretrained_windows ENCODER.drop_path TARGET.normalize",
    ),
    "finetune/mae_vit_large": (
        "finetune/mae_vit_base",
        f"{SIZE} ENCODER.drop_path TRAIN.epochs OPTIMIZER.base_lr OPTIMIZER.layer_decay",
    ),
    "finetune/mae_vit_huge": (
        "finetune/mae_vit_large",
        "ENCODER.width ENCODER.depth ENCODER.patch ENCODER.drop_path DATA.batch_size",
    ),
    "probe/mae_vit_large": ("probe/mae_vit_base", f"{SIZE} TRAIN.epochs"),
    "probe/mae_vit_huge": ("probe/mae_vit_large", "ENCODER.width ENCODER.depth ENCODER.patch"),
    "finetune/simmim_swin_base_100ep_192": (
        "finetune/simmim_swin_base_100ep_224",
        "DATA.image_size ENCODER.window",
    ),
    "finetune/simmim_swin_base_800ep": ("finetune/simmim_swin_base_100ep_224", "OPTIMIZER.layer_decay"),
    "finetune/simmim_swin_large_800ep": (
        "finetune/simmim_swin_base_800ep",
        "ENCODER.width ENCODER.heads ENCODER.window ENCODER.drop_path DATA.batch_size OPTIMIZER.layer_decay",
    ),
    "finetune/simmim_swin_v2_base_800ep": (
        "finetune/simmim_swin_base_800ep",
        "ENCODER.name ENCODER.window ENCODER.pretrained_windows OPTIMIZER.layer_decay OPTIMIZER.no_decay "
        "SCHEDULE.cosine_from",
    ),
}


BASES = {"digits": "quickstart/mae_digits", "cifar10": "cifar10/mae_vit_tiny"}
FOLLOWERS = ("follower", "follower_8_masks", "ijepa", "clusters", "teacher", "fourier", "lowpass", "hog")
OF_ONE_BASE = [f"digits/{method}" for method in FOLLOWERS]
OF_ONE_BASE += [f"cifar10/{method}_vit_tiny" for method in FOLLOWERS[:-1]]  # hog has crops and rates of its own


@pytest.mark.parametrize("name", OF_ONE_BASE)
def test_recipes_of_other_targets_train_as_their_base_so_that_they_compare(name):
    base = recipe(BASES[name.split("/")[0]])
    differing = {line.partition(":")[0] for line in config.differing(recipe(name), base)}
    differing = {key for key in differing if not key.startswith(("MASKER.", "HEAD.", "TARGET.", "LOSS."))}
    of_encoder = {f"ENCODER.{key}" for key in ("hidden", "positions", "class_token", "linear_init")}
    several = {"DATA.masks"} | ({"DATA.batch_size"} if name.startswith("cifar10") else set())
    assert differing <= {"RECIPE", *of_encoder, *(several if "masks" in name else ())}


@pytest.mark.parametrize("name", SIBLINGS)
def test_recipe_differs_from_its_sibling_only_in_what_is_published(name):
    sibling, keys = SIBLINGS[name]
    differing = {line.partition(":")[0] for line in config.differing(recipe(name), recipe(sibling))}
    assert differing - {"RECIPE"} == set(keys.split())
