"""Teacher: timm's own features of the same file, resized and normalised by hand; what is kept, saved and refused."""

import copy
import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from converted import sample
from processes import RECIPE, TINY, call, last_state, same
from safetensors.torch import save_file
from small_models import images

from mim import build_model, load_model
from mim.build import load_config
from mim.build.models import build_without_memory
from mim.config import parse_config
from mim.convert import convert
from mim.engine import checkpoint
from mim.resume import check_teachers
from mim.structures import ImageSpec

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
THEIRS = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)  # those of timm's test_vit
SIZE = (64, 96)
TEXT = """
TASK: pretrain
DATA: {{image_size: [64, 96], channels: 3, mean: [0.4, 0.5, 0.6], std: [0.2, 0.3, 0.25]}}
MASKER: {{name: {masker}, cell: 16, ratio: 0.5}}
ENCODER: {{name: vit, hidden: {hidden}, patch: 16, width: 24, depth: 2, heads: 2}}
HEAD: {{name: {head}}}
TARGET: {{name: teacher, norm: none, {target}}}
LOSS: {{name: mse}}
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model of timm, and files of its weights."""
    folder = tmp_path_factory.mktemp("teachers")
    torch.manual_seed(0)
    theirs = timm.create_model("test_vit", img_size=SIZE, dynamic_img_size=False).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    save_file(theirs.state_dict(), folder / "vit.safetensors")
    torch.save(theirs.state_dict(), folder / "vit.pth")
    return theirs, folder


def text_of(file, masker="random", hidden="drop", head="transformer, width: 16, depth: 1, heads: 2", **keys):
    keys = {"checkpoint": str(file), **keys}
    target = ", ".join(f"{key}: {value}" for key, value in keys.items())
    return TEXT.format(masker=masker, hidden=hidden, head=head, target=target)


def model_of(file, **keys):
    return build_model(parse_config(text_of(file, **keys)))


def seen(img, mean=THEIRS[0], std=THEIRS[1]):
    """What the teacher should see of images that are normalised for the student."""
    column = lambda values: torch.tensor(values)[:, None, None]  # noqa: E731
    return (img * column(STD) + column(MEAN) - column(mean)) / column(std)


def on_grid(tokens_BND, high):
    return tokens_BND.transpose(1, 2).unflatten(2, (high, -1))


@pytest.fixture
def img():
    return images(2, ImageSpec(3, *SIZE))


@pytest.mark.parametrize("file", ["vit.safetensors", "vit.pth"])
@torch.no_grad()
def test_teacher_gives_timms_features_of_the_same_file(files, img, file):
    theirs, folder = files
    actual = model_of(folder / file, model="test_vit").target(img)
    expected = on_grid(theirs.forward_features(seen(img))[:, 1:], 4)
    assert actual.shape == (2, 64, 4, 6)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_teacher_sees_images_in_the_normalisation_that_the_keys_give(files, img):
    theirs, folder = files
    mean, std = [0.1, 0.2, 0.3], [1.0, 0.5, 2.0]
    actual = model_of(folder / "vit.pth", model="test_vit", mean=mean, std=std).target(img)
    expected = on_grid(theirs.forward_features(seen(img, mean, std))[:, 1:], 4)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(actual, on_grid(theirs.forward_features(img)[:, 1:], 4), atol=1e-2)


@torch.no_grad()
def test_class_token_is_the_target_of_every_position(files, img):
    theirs, folder = files
    actual = model_of(folder / "vit.pth", model="test_vit", tokens="class").target(img)
    expected = theirs.forward_features(seen(img))[:, 0]
    for row, column in np.ndindex(4, 6):
        torch.testing.assert_close(actual[:, :, row, column], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_mean_of_the_last_blocks_with_both_norms(files, img):
    """By timm's own intermediate features, and numpy."""
    theirs, folder = files
    outputs = theirs.forward_intermediates(seen(img), indices=3, norm=False, intermediates_only=True)
    layers = [output.double().numpy() for output in outputs]

    def normed(each, axes):
        return (each - each.mean(axes, keepdims=True)) / np.sqrt(each.var(axes, keepdims=True) + 1e-5)

    for layer_norm, axes in (("instance", (2, 3)), ("layer", (1,))):
        keys = {"model": "test_vit", "layers": 3, "layer_norm": layer_norm, "norm": "layer"}
        text = text_of(folder / "vit.pth", **keys).replace("norm: none, ", "")
        actual = build_model(parse_config(text)).target(img)
        expected = normed(np.mean([normed(each, axes) for each in layers], axis=0), (1,))
        np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_mlps_of_a_plain_vit_of_timm_are_read_without_its_name_alone(files, img, tmp_path):
    """Without TARGET.model its file is of our vit, whose layers can be MLPs; timm's own, by hooks, are the same."""
    torch.manual_seed(0)
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=SIZE, depth=3).eval()
    torch.save(theirs.state_dict(), tmp_path / "plain.pth")
    outputs = []
    for block in theirs.blocks[1:]:
        block.mlp.register_forward_hook(lambda module, args, output: outputs.append(output))
    theirs.forward_features(seen(img))
    keys = {"layers": 2, "of": "mlp", "mean": list(THEIRS[0]), "std": list(THEIRS[1])}
    actual = model_of(tmp_path / "plain.pth", **keys).target(img)
    expected = on_grid((outputs[0] + outputs[1])[:, 1:] / 2, 4)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    blocks = model_of(tmp_path / "plain.pth", **keys | {"of": "block"}).target(img)
    assert not torch.allclose(blocks, expected, atol=1e-2)
    with pytest.raises(
        ValueError, match=r"TARGET\.of mlp reads .* this one is timm test_vit.*with TARGET\.model empty"
    ):
        model_of(files[1] / "vit.pth", model="test_vit", **keys)


@torch.no_grad()
def test_teacher_sees_images_of_its_own_size_and_its_map_is_resized_to_the_grid_of_the_student(files, img):
    """128 x 96 px are 8 x 6 tokens of the teacher, and 4 x 6 of the student."""
    _, folder = files
    torch.manual_seed(0)
    theirs = timm.create_model("test_vit", img_size=(128, 96)).eval()
    state = {name: weight for name, weight in torch.load(folder / "vit.pth").items() if name != "pos_embed"}
    torch.save({**state, "pos_embed": theirs.pos_embed.data}, folder / "tall.pth")
    theirs.load_state_dict(state, strict=False)
    actual = model_of(folder / "tall.pth", model="test_vit", image_size=[128, 96]).target(img)
    tall = F.interpolate(seen(img), (128, 96), mode="bicubic", align_corners=False, antialias=True)
    map_BDhw = on_grid(theirs.forward_features(tall)[:, 1:], 8)
    expected = (map_BDhw[:, :, ::2] * 0).repeat(1, 1, 1, 1)
    weights = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8  # the triangle of an antialiased half
    for row in range(4):
        rows = [2 * row - 1, 2 * row, 2 * row + 1, 2 * row + 2]
        inside = [(each, weight) for each, weight in zip(rows, weights, strict=True) if 0 <= each < 8]
        total = sum(weight for _, weight in inside)
        expected[:, :, row] = sum(weight / total * map_BDhw[:, :, each] for each, weight in inside)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_attention_is_what_the_class_token_takes_by_hand(files, img):
    theirs, folder = files
    block, tokens = theirs.blocks[-1], []
    handle = block.attn.register_forward_pre_hook(lambda module, args: tokens.append(args[0]))
    theirs.forward_features(seen(img))
    handle.remove()
    heads = block.attn.num_heads
    query, key, _ = block.attn.qkv(tokens[0]).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    query, key = block.attn.q_norm(query), block.attn.k_norm(key)
    share = (query[:, :, :1] @ key.transpose(2, 3) * block.attn.scale).softmax(dim=-1)[:, :, 0, 1:].mean(dim=1)
    target = model_of(folder / "vit.pth", model="test_vit").target
    assert target.attends
    torch.testing.assert_close(
        target.learn(img, attend=True).attention_BHW, share.unflatten(1, (4, 6)), rtol=1e-4, atol=1e-5
    )


# ---------------------------------------------------------------- what is kept


def test_teacher_is_neither_saved_nor_trained_nor_copied(files, img):
    _, folder = files
    model = model_of(folder / "vit.pth", model="test_vit")
    network = model.target.frozen_networks()[0].network
    weights = {id(parameter) for parameter in network.parameters()}
    assert not any(name.startswith("target") for name in model.state_dict())
    assert not any(name.startswith("target") for name, _ in model.named_parameters())
    assert not weights & {id(parameter) for parameter in model.parameters()}
    assert copy.deepcopy(model).target.frozen_networks()[0].network is network
    assert not any(parameter.requires_grad for parameter in network.parameters())
    model.train()
    assert not any(module.training for module in network.modules())
    model(img, model.sample_mask(img)).loss.backward()
    assert all(parameter.grad is None for parameter in network.parameters())


@torch.no_grad()
def test_hidden_pixels_change_the_target_and_not_the_prediction(files, img):
    _, folder = files
    model = model_of(folder / "vit.pth", model="test_vit").eval()
    mask = model.sample_mask(img, torch.Generator().manual_seed(0))
    other = torch.where(mask.at(*SIZE)[:, None], img + 1, img)
    one, two = model(img, mask), model(other, mask)
    assert torch.equal(one.prediction, two.prediction)
    assert one.loss != two.loss


@pytest.mark.slow
def test_teacher_is_outside_of_the_compiled_student(files, img):
    """One graph without a break, which holds none of the teacher's weights."""
    _, folder = files
    model = model_of(folder / "vit.pth", model="test_vit").train()
    mask = model.sample_mask(img, torch.Generator().manual_seed(0))
    expected = model(img, mask)
    graphs = []

    def backend(graph, inputs):
        graphs.append(inputs)
        return graph.forward

    model.compile(fullgraph=True, backend=backend)
    output = model(img, mask)
    torch.testing.assert_close(output.loss, expected.loss)
    assert len(graphs) == 1
    theirs = {weight.data_ptr() for weight in model.target.frozen_networks()[0].network.parameters()}
    assert not theirs & {each.data_ptr() for each in graphs[0] if isinstance(each, torch.Tensor)}
    output.loss.backward()
    assert model.encoder.backbone.cls_token.grad is not None
    torch._dynamo.reset()


# ---------------------------------------------------------------- files


@torch.no_grad()
def test_teacher_from_a_file_of_mae_has_its_features(tmp_path):
    """The encoder of the official layout; the decoder of the file is left alone."""
    mae = sample("mae")
    convert(mae.write(tmp_path / "ours.pt"), tmp_path / "mae.pth", "mae")
    size = mae.cfg.DATA.image_size
    text = text_of(tmp_path / "mae.pth", mean=[0.4] * 3, std=[0.3] * 3).replace("[64, 96]", str(list(size)))
    model = build_model(parse_config(text.replace("cell: 16", "cell: 8").replace("patch: 16", "patch: 8")))
    img = images(2, ImageSpec(3, *size))
    tokens = mae.features(seen(img, [0.4] * 3, [0.3] * 3))[:, 1:]
    torch.testing.assert_close(model.target(img), on_grid(tokens, size[0] // 8), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("folder", [False, True])
@torch.no_grad()
def test_teacher_from_a_run_has_its_normalisation(tmp_path, folder):
    """By its checkpoint, or by its folder."""
    mae = sample("mae")
    (tmp_path / "checkpoints").mkdir()
    file, size = mae.write(tmp_path / "checkpoints" / "step-3.pt"), mae.cfg.DATA.image_size
    text = text_of(tmp_path if folder else file).replace("[64, 96]", str(list(size)))
    model = build_model(parse_config(text.replace("cell: 16", "cell: 8").replace("patch: 16", "patch: 8")))
    img = images(2, ImageSpec(3, *size))
    tokens = mae.features(seen(img, mae.cfg.DATA.mean, mae.cfg.DATA.std))[:, 1:]
    torch.testing.assert_close(model.target(img), on_grid(tokens, size[0] // 8), rtol=1e-4, atol=1e-5)


PLUGIN = """
import torch
from mim import Encoder, Features
class Mean(Encoder, name="mean_of_squares_of_tests"):
    def __init__(self, image, *, hidden: str = "none"):
        super().__init__(image, hidden, width=4, patch=16)
        self.project = torch.nn.Linear(3, 4)
    def forward(self, img_BCHW, mask=None):
        squares = torch.nn.functional.avg_pool2d(img_BCHW, 16).flatten(2).transpose(1, 2)
        return Features(self.project(squares), self.spec.grid)
"""


@torch.no_grad()
def test_teacher_may_be_an_encoder_of_a_plugin(tmp_path, monkeypatch, img):
    (tmp_path / "plugin_of_teachers.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    data = next(line for line in text_of("x").splitlines() if line.startswith("DATA"))
    encoder = "ENCODER: {name: mean_of_squares_of_tests, hidden: none}"
    cfg = parse_config("\n".join(("TASK: finetune", "PLUGINS: [plugin_of_teachers]", data, encoder)))
    encoder = cfg.ENCODER.build(ImageSpec(3, *SIZE))
    state = {f"encoder.{name}": weight for name, weight in encoder.state_dict().items()}
    checkpoint.write(tmp_path / "run.pt", {"step": 1, "model": state, "ema": {}, "config": cfg.to_yaml()})
    actual = model_of(tmp_path / "run.pt").target(img)
    torch.testing.assert_close(actual, on_grid(encoder(img).tokens_BND, 4))


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("", {}, r"TARGET\.checkpoint is empty: name the file.*TARGET\.model"),
        ("missing.pth", {"model": "test_vit"}, r"TARGET\.checkpoint .*missing\.pth"),
        ("noise.pth", {"model": "test_vit"}, r"TARGET\.checkpoint .*noise\.pth"),
        ("noise.pth", {}, r"TARGET\.checkpoint .*noise\.pth"),
        ("picture.pth", {"model": "test_vit"}, r"TARGET\.checkpoint .*picture\.pth"),
        ("vit.pth", {"model": "test_no_such"}, r"TARGET\.checkpoint .*vit\.pth.*test_no_such"),
        ("vit.pth", {"model": "test_efficientnet"}, r"TARGET\.checkpoint .*vit\.pth"),
        ("vit.pth", {}, r"(?s)TARGET\.checkpoint .*vit\.pth.*TARGET\.model"),
        ("grey.pth", {"model": "test_vit"}, r"(?s)TARGET\.checkpoint .*grey\.pth.*(channel|1x16x16)"),
        ("vit.pth", {"model": "test_vit", "image_size": [30, 30]}, r"(?s)TARGET\.checkpoint .*vit\.pth"),
        (
            "grey.pth",
            {},
            r"TARGET\.checkpoint .*grey\.pth: it is of images with 1 channels, and DATA\.channels is 3: name",
        ),
        ("run.pt", {"model": "test_vit"}, r"run\.pt: it is of vit, and TARGET\.model is test_vit: leave TARGET\.model"),
        ("vit.pth", {"model": "test_vit", "image_size": [0, 64]}, r"TARGET\.image_size is \[0, 64\]: .*at least 1"),
        (
            "vit.pth",
            {"model": "test_vit", "mean": [0.5], "std": [0.5]},
            r'TARGET\.mean has 1 values, \[0\.5\], and images have 3 .*TARGET\.mean "\[0\.5, 0\.5, 0\.5\]"',
        ),
        ("vit.pth", {"model": "test_vit", "mean": [0, 0, 0], "std": [1, 0, 1]}, r"TARGET\.std is .*above 0"),
        ("vit.pth", {"model": "test_vit", "layers": 99}, r"TARGET\.layers is 99: of .* at most"),
    ],
)
def test_teacher_that_cannot_be_is_refused_by_its_key(files, tmp_path, name, keys, message):
    _, folder = files
    (tmp_path / "noise.pth").write_bytes(bytes(range(256)) * 8)
    torch.save({"a": torch.zeros(3)}, tmp_path / "picture.pth")
    torch.save(timm.create_model("test_vit", img_size=SIZE, in_chans=1).state_dict(), tmp_path / "grey.pth")
    shutil.copy(folder / "vit.pth", tmp_path)
    own = {
        "step": 1,
        "model": {"encoder.embed": torch.zeros(1)},
        "ema": {},
        "config": parse_config(text_of('""')).to_yaml(),
    }
    checkpoint.write(tmp_path / "run.pt", own)
    with pytest.raises(ValueError, match=message):
        model_of(tmp_path / name if name else '""', **keys)


def test_teacher_with_a_file_is_described_without_its_memory(tmp_path):
    """Plans read shapes alone, also of a file whose weights say what it holds."""
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1)
    save_file(theirs.state_dict(), tmp_path / "plain.safetensors")
    model = build_without_memory(parse_config(text_of(tmp_path / "plain.safetensors", model="vit_tiny_patch16_224")))
    assert model is not None
    assert next(model.target.frozen.network.parameters()).is_meta


# ---------------------------------------------------------------- runs

RUN = TINY | {
    **{"TRAIN.batch": 256, "DATA.batch_size": 256, "EVALUATE.knn": 0, "EVALUATE.samples": 16},
    **{"CHECKPOINT.every_minutes": 1e-6, "CHECKPOINT.keep": 9, "TARGET.name": "teacher"},
}


@pytest.mark.slow
def test_run_goes_on_with_the_teacher_of_the_same_content_alone(tmp_path):
    files = [tmp_path / name for name in ("teacher.pt", "other.pt", "moved.pt")]
    words = [str(word) for pair in (RUN | {"TARGET.name": "pixels", "ENCODER.width": 8}).items() for word in pair]
    for seed, file in enumerate(files[:2]):
        cfg = load_config(RECIPE, [*words, "SEED", str(seed)])
        state = build_model(cfg).state_dict()
        checkpoint.write(file, {"step": 1, "model": state, "ema": {}, "config": cfg.to_yaml()})
    checksum, run = hashlib.sha256(files[0].read_bytes()).hexdigest(), tmp_path / "run"
    code, text = call(run, RUN | {"TARGET.checkpoint": str(files[0])}, RECIPE)
    assert code == 0, text
    whole = last_state(run)
    assert whole["teachers"] == {str(files[0]): checksum}
    assert checksum[:12] in (run / "log.txt").read_text()
    assert not any("target" in name for name in whole["model"])

    def resumed(file):
        (run / "checkpoints" / "last").write_text("step-3.pt\n")
        (run / "summary.json").unlink(missing_ok=True)
        return call(run, RUN | {"TARGET.checkpoint": str(file)}, RECIPE)

    code, text = resumed(files[1])
    assert code == 2, text
    assert "TARGET.checkpoint" in text
    assert "name the same file" in text
    shutil.move(files[0], files[2])
    code, text = resumed(files[2])
    assert code == 0, text
    assert "at step 3 of 5" in text
    same(last_state(run)["model"], whole["model"])
    before = run / "checkpoints" / "step-3.pt"  # it names the file that is gone, which only the loss needs
    convert(before, tmp_path / "encoder.pth", "timm")
    with pytest.raises(ValueError, match=r"TARGET\.checkpoint .*teacher\.pt does not exist"):
        load_model(before)
    assert load_model(before, {"TARGET.checkpoint": str(files[2])})[0].target.attends


def test_teachers_that_changed_places_are_others():
    ours = {"a.pt": "1" * 64, "b.pt": "2" * 64}
    moved, swapped = {"c.pt": "1" * 64, "b.pt": "2" * 64}, {"b.pt": "2" * 64, "a.pt": "1" * 64}
    check_teachers(ours, {"teachers": moved}, Path("step-3.pt"))
    check_teachers({}, {}, Path("step-3.pt"))
    with pytest.raises(ValueError, match=r"trained with the teacher b\.pt .*, a\.pt .* is now a\.pt .*, b\.pt"):
        check_teachers(ours, {"teachers": swapped}, Path("step-3.pt"))
