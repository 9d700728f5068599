"""INIT.parts: head and target come along with the encoder, whole or not at all; what begins anew is named."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from converted import MODELS, Sample, build_sample, loss_of, sample
from foreign_files import mae_finetuned, mae_pretrained, simmim_pretrained, simmim_vit, swin, write_mae, write_simmim
from small_data import FINETUNE, RECIPE, write_recipe
from torch import Tensor, nn

import mim
from mim import MaskedImageModel, build_model
from mim.config import Config, parse_config
from mim.convert import convert
from mim.init_weights import initialise
from mim.interop import read
from mim.interop.initialise_model import anew_line, differing, initialise_model
from mim.targets import Target

PRETRAINED = ("mae", "mae-wide-many", "vit-replaced-decoder", "swin", "swin_v2", "beit-decoder")


def fresh(cfg: Config) -> MaskedImageModel:
    """The model of a config with the weights of another seed."""
    return build_model(cfg.replace({"SEED": 5})).eval()


def load(cfg: Config, path: Path, keep: tuple[str, ...] = ()) -> tuple[MaskedImageModel, list[str]]:
    model = fresh(cfg)
    return model, initialise_model(model, read(path, "INIT.checkpoint"), cfg.values(), keep)


def changed(source: Sample, **keys: object) -> Config:
    """The sample's config with other values; HEAD__width stands for HEAD.width."""
    pairs = {key.replace("__", "."): value for key, value in keys.items()}
    return parse_config(source.cfg.to_yaml(), pairs)


# -------------------------------------------------------------------- what comes along


@pytest.mark.parametrize("name", PRETRAINED)
def test_model_of_a_checkpoint_has_its_loss_to_the_bit(tmp_path: Path, name: str) -> None:
    source = sample(name)
    model, lines = load(source.cfg, source.write(tmp_path / "run.pt"))
    img_BCHW = source.images()
    assert torch.equal(loss_of(model, img_BCHW), loss_of(source.model, img_BCHW))
    assert "  and behind the encoder: head." in lines[1]
    assert "the optimizer begins anew" in lines[1]


@pytest.mark.parametrize(
    ("name", "to", "file"),
    [("mae", "mae", "a.pth"), ("mae", "transformers", "a"), ("swin", "simmim", "a.pth"), ("beit", "simmim", "a.pth")],
)
def test_model_of_a_foreign_file_has_its_loss_to_the_bit(tmp_path: Path, name: str, to: str, file: str) -> None:
    source = sample(name)
    convert(source.write(tmp_path / "run.pt"), tmp_path / file, to)
    model, _ = load(source.cfg, tmp_path / file)
    img_BCHW = source.images()
    assert torch.equal(loss_of(model, img_BCHW), loss_of(source.model, img_BCHW))


def test_model_takes_the_decoder_of_an_official_mae_file(tmp_path: Path) -> None:
    """The file mae_pretrain_*_full.pth: {'model': ...} with decoder_embed, decoder_blocks, decoder_pred, mask_token."""
    theirs = mae_pretrained()
    path = write_mae(tmp_path / "full.pth", theirs, norm_pix_loss=True, model="mae_vit_base_patch16")
    keys = {"ENCODER.mlp_ratio": 4.0, "HEAD.mlp_ratio": 4.0, "ENCODER.positions": "learned"}
    cfg = parse_config(sample("mae").cfg.to_yaml(), keys)
    model, lines = load(cfg.replace({"TARGET.normalize": "none"}), path)
    assert any("so the loss at the start is not" in line and "TARGET.normalize patch there" in line for line in lines)
    ours = model.state_dict()
    for mine, official in (
        ("head.embed.weight", "decoder_embed.weight"),
        ("head.mask_token", "mask_token"),
        ("head.layers.1.attn.qkv.bias", "decoder_blocks.1.attn.qkv.bias"),
        ("head.norm.bias", "decoder_norm.bias"),
        ("head.predict.weight", "decoder_pred.weight"),
        ("encoder.backbone.blocks.1.mlp.fc2.weight", "blocks.1.mlp.fc2.weight"),
    ):
        assert torch.equal(ours[mine], theirs[official]), mine


@pytest.mark.parametrize(
    ("name", "shapes", "stride", "section"),
    [("swin", swin(), 8, "SWIN"), ("beit", simmim_vit(), 8, "VIT")],
    ids=["swin", "vit"],
)
def test_model_takes_the_decoder_of_an_official_simmim_file(tmp_path, name, shapes, stride, section) -> None:
    theirs = simmim_pretrained(shapes, stride)
    path = write_simmim(tmp_path / "ckpt_epoch_99.pth", theirs)
    source = sample(name)
    model, lines = load(changed(source, TARGET__normalize="none"), path)
    state = model.state_dict()
    assert torch.equal(state["head.conv.weight"], theirs["decoder.0.weight"])
    assert torch.equal(state["head.conv.bias"], theirs["decoder.0.bias"])
    assert torch.equal(state["encoder.mask_token"], theirs["encoder.mask_token"])
    assert any("so the loss at the start is not that of its end: " in line and "LOSS.name" in line for line in lines)


def test_model_takes_the_moving_average(tmp_path: Path) -> None:
    source, other = sample("mae"), build_sample(MODELS["mae"], seed=2)
    ema = {"n_averaged": torch.tensor(3), **{f"module.{name}": weight for name, weight in source.state.items()}}
    model, lines = load(source.cfg, other.write(tmp_path / "run.pt", ema=ema))
    assert torch.equal(loss_of(model, source.images()), loss_of(source.model, source.images()))
    assert "their moving average" in lines[0]


def test_model_takes_a_state_dict_that_was_saved_from_python(tmp_path: Path) -> None:
    source = sample("mae")
    torch.save(source.model.state_dict(), tmp_path / "state.pt")
    cfg = changed(source, INIT__checkpoint=tmp_path / "state.pt", INIT__parts="model")
    model = fresh(cfg)
    initialise(cfg, SimpleNamespace(model=model))
    assert torch.equal(loss_of(model, source.images()), loss_of(source.model, source.images()))


def test_model_takes_the_trained_weights_of_a_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Projected(Target):
        """Pixels through a trained layer."""

        name = "projected"

        def __init__(self, image, encoder):
            super().__init__(image, encoder)
            self.spec = mim.TargetSpec(image.channels, 1)
            self.layer = nn.Conv2d(image.channels, image.channels, 1)

        def forward(self, img_BCHW: Tensor) -> Tensor:
            return self.layer(img_BCHW)

    monkeypatch.setitem(Target._members, "projected", Projected)
    cfg = changed(sample("mae"), TARGET__name="projected")
    source = Sample(cfg, build_model(cfg).eval())
    model, lines = load(cfg, source.write(tmp_path / "run.pt"))
    assert torch.equal(model.target.layer.weight, source.model.target.layer.weight)
    assert torch.equal(loss_of(model, source.images()), loss_of(source.model, source.images()))
    assert "target.layer.{weight, bias}" in lines[1]
    assert anew_line(model, source.state).startswith("  head and target begin anew: in the file, and not taken: ")


def test_model_at_another_image_size_has_its_positions_resized_and_says_so(tmp_path: Path) -> None:
    source = sample("mae-wide-many")
    cfg = changed(source, DATA__image_size=[64, 64])
    model, lines = load(cfg, source.write(tmp_path / "run.pt"))
    assert any("backbone.pos_embed 1x33x24 -> 1x65x24" in line for line in lines)
    assert torch.equal(model.head.predict.weight, source.model.head.predict.weight)
    assert loss_of(model, torch.randn(2, 12, 64, 64)).isfinite()


# -------------------------------------------------------------------- what does not


@pytest.mark.parametrize(
    ("keys", "texts"),
    [
        ({"HEAD__width": 32}, ["HEAD.width 16 there, 32 here", "head.mask_token 1x1x16 there, 1x1x32 here"]),
        ({"HEAD__depth": 3}, ["HEAD.depth 2 there, 3 here", "missing there: head.layers.2."]),
        ({"HEAD__depth": 1}, ["HEAD.depth 2 there, 1 here", "there only: head.layers.1."]),
        ({"HEAD__heads": 4}, ["HEAD.heads 2 there, 4 here"]),  # no weight shows it
        ({"TARGET__normalize": "none"}, ["TARGET.normalize patch there, none here"]),
        ({"TARGET__normalize": "none", "TARGET__stride": 2}, ["TARGET.stride 1 there, 2 here", "head.predict.weight"]),
    ],
)
def test_model_with_another_head_is_refused_and_both_are_named(tmp_path: Path, keys: dict, texts: list[str]) -> None:
    source = sample("mae")
    path = source.write(tmp_path / "run.pt")
    model = fresh(changed(source, **keys))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"run\.pt holds another head than this config") as caught:
        initialise_model(model, read(path, "INIT.checkpoint"), changed(source, **keys).values())
    assert all(text in str(caught.value) for text in texts), caught.value
    assert "INIT.parts encoder" in str(caught.value)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_model_with_another_kind_of_head_is_refused(tmp_path: Path) -> None:
    path = sample("vit-replaced-wide").write(tmp_path / "run.pt")
    with pytest.raises(ValueError, match=r"HEAD\.name pixel_shuffle there, transformer here"):
        load(sample("vit-replaced-decoder").cfg, path)


def test_model_keeps_values_that_init_keep_names(tmp_path: Path) -> None:
    source = sample("mae")
    cfg = changed(source, HEAD__heads=4, TARGET__normalize="none")
    model, _ = load(cfg, source.write(tmp_path / "run.pt"), keep=("HEAD.heads", "TARGET.normalize"))
    assert torch.equal(model.head.embed.weight, source.model.head.embed.weight)


def test_model_under_another_mask_or_loss_goes_on_and_says_that_the_loss_is_another(tmp_path: Path) -> None:
    source = sample("mae")
    _, lines = load(changed(source, MASKER__ratio=0.5, LOSS__name="l1"), source.write(tmp_path / "run.pt"))
    line = next(line for line in lines if "the loss at the start is not that of its end" in line)
    assert "MASKER.ratio 0.75 there, 0.5 here" in line
    assert "LOSS.name mse there, l1 here" in line


def test_model_under_another_weight_of_its_target_goes_on(tmp_path: Path) -> None:
    source = sample("mae")
    _, lines = load(changed(source, TARGET__weight=2), source.write(tmp_path / "run.pt"))
    assert lines[-1] == "  so the loss at the start is not that of its end: TARGET.weight 1.0 there, 2.0 here"


TWO = [{"name": "pixels", "weight": 1.0, "normalize": "patch"}, {"name": "hog", "weight": 0.5, "bins": 9}]


@pytest.mark.parametrize(
    ("theirs", "ours", "unlike"),
    [
        (TWO, TWO, []),
        (TWO, [TWO[0], {**TWO[1], "bins": 4, "weight": 1.0}], ["TARGET.1.bins 9 there, 4 here"]),
        (TWO, [TWO[0], {"name": "lowpass", "bins": 4}], ["TARGET.1.name hog there, lowpass here"]),
        (TWO, TWO[0], ["TARGET pixels + hog there, pixels here"]),
        (TWO, [*TWO, TWO[0]], ["TARGET pixels + hog there, pixels + hog + pixels here"]),
        (None, TWO, []),  # the file does not say it
    ],
)
def test_targets_are_compared_one_by_one(theirs: object, ours: object, unlike: list[str]) -> None:
    file = {} if theirs is None else {"TARGET": theirs}
    assert list(differing(file, {"TARGET": ours}, ["TARGET"]).values()) == unlike


def test_weights_of_targets_are_compared_where_they_are_asked_for() -> None:
    others = {"TARGET": [TWO[0], {**TWO[1], "weight": 2.0}]}
    assert differing({"TARGET": TWO}, others, ["TARGET.weight"]) == {
        "TARGET.1.weight": "TARGET.1.weight 0.5 there, 2.0 here"
    }


def test_model_of_a_file_without_a_head_is_refused(tmp_path: Path) -> None:
    cfg = parse_config(sample("mae").cfg.to_yaml(), {"ENCODER.mlp_ratio": 4.0, "ENCODER.positions": "learned"})
    path = write_mae(tmp_path / "encoder.pth", mae_pretrained(decoder=0), input_size=32)
    with pytest.raises(ValueError, match=r"encoder\.pth holds an encoder alone.*INIT\.parts encoder"):
        load(cfg, path)
    path = write_mae(tmp_path / "tuned.pth", mae_finetuned(pool="class"), input_size=32)
    with pytest.raises(ValueError, match=r"tuned\.pth holds another head.*\n(.*\n)*.*there only: readouts\.0"):
        load(cfg, path)


def test_model_without_all_of_its_encoder_is_refused(tmp_path: Path) -> None:
    source = sample("mae")
    with pytest.raises(ValueError, match=r"does not hold exactly this encoder.*\n.*missing in the file.*blocks\.2"):
        load(changed(source, ENCODER__depth=3), source.write(tmp_path / "run.pt"))
    with pytest.raises(ValueError, match=r"does not hold exactly this encoder.*\n.*in the file only.*blocks\.1"):
        load(changed(source, ENCODER__depth=1), tmp_path / "run.pt")


def test_parts_are_of_pretraining_and_of_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"INIT\.parts is model, and INIT\.checkpoint is empty"):
        mim.load_config(write_recipe(tmp_path, RECIPE), {"INIT.parts": "model"})
    keys = {"INIT.parts": "model", "INIT.checkpoint": "gone.pt"}
    with pytest.raises(ValueError, match=r"INIT\.parts is model, and TASK finetune has no head of a pretraining"):
        mim.load_config(write_recipe(tmp_path, FINETUNE), keys)
    with pytest.raises(ValueError, match=r"INIT\.take names HEAD\.width"):
        mim.load_config(write_recipe(tmp_path, RECIPE), {"INIT.take": ["HEAD.width"]})


# -------------------------------------------------------------------- the encoder alone


def test_encoder_alone_says_that_the_head_begins_anew_and_names_what_was_not_taken(tmp_path: Path) -> None:
    source = sample("swin")
    cfg = changed(source, INIT__checkpoint=source.write(tmp_path / "run.pt"))
    model = fresh(cfg)
    lines = initialise(cfg, SimpleNamespace(model=model))
    assert lines[1].startswith("  head begins anew: ")
    assert "not taken: head.conv.{weight, bias}" in lines[1]
    assert "INIT.parts model" in lines[1]
    assert not torch.equal(model.head.conv.weight, source.model.head.conv.weight)
    assert torch.equal(model.encoder.mask_token, source.model.encoder.mask_token)


def test_encoder_alone_of_a_file_that_holds_no_more_says_so() -> None:
    line = anew_line(sample("swin").model, ["encoder.norm.weight"])
    assert line.startswith("  head begins anew: ")
    assert "the encoder alone" in line
    assert "INIT.parts" not in line


def test_encoder_alone_of_a_classifier_names_what_was_not_taken(tmp_path: Path) -> None:
    line = anew_line(sample("vit-mean").model, sample("mae").state)
    assert line.startswith("  readout begins anew: in the file, and not taken: head.mask_token")
    assert "INIT.parts" not in line
