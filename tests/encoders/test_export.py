"""Encoders, classifiers and models under masks that are exported at one batch size answer as themselves at others.

Shapes: B batch, C channels, H W pixels or cells.
"""

import warnings

import pytest
import torch
from converted import sample
from small_models import IMAGE, assemble, finetuned_predictor, generator, images, members, small
from torch import Tensor, nn

from mim import load_encoder
from mim.encoders import Encoder
from mim.structures import PatchMask

EXAMPLE = 2  # images of the batch that is exported; torch.export takes a batch of 1 for a constant
BATCHES = (1, 5)
LOADED = ["mae-tall-grey", "vit-no-class", "beit-mean", "swin-wide-many", "swin_v2-mean"]
FREE = ({0: torch.export.Dim("batch")},)


class Everything(nn.Module):
    """Each thing that users take from an encoder."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder, self.classifier = (
            encoder,
            finetuned_predictor(encoder, 7),
        )
        nn.init.normal_(self.classifier.readouts[0].linear.weight)

    def forward(self, img_BCHW: Tensor) -> tuple[Tensor, ...]:
        pool = "both" if self.encoder.spec.num_prefix else "mean"
        maps = self.encoder.feature_maps(img_BCHW).values()
        return self.encoder(img_BCHW).pooled(pool), *self.classifier(img_BCHW), *maps


class Scores(Everything):
    """Class scores alone, which take half the time to export."""

    def forward(self, img_BCHW: Tensor) -> tuple[Tensor, ...]:
        return self.classifier(img_BCHW)


def everything(name: str, kind: type[Everything] = Everything, **keys) -> nn.Module:
    torch.manual_seed(0)
    return kind(small(Encoder.named(name), IMAGE, hidden="none", **keys)).eval()


def traced(model: nn.Module, *example: Tensor):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # asserts of timm about the size of images, which is fixed
        return torch.jit.trace(model, example)


def exported(model: nn.Module, *example: Tensor):
    return torch.export.export(model, example, dynamic_shapes=FREE).module()


def in_onnx(model: nn.Module, *example: Tensor):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="ONNX needs onnx, onnxscript and onnxruntime")
    import onnxruntime

    program = torch.onnx.export(model, example, dynamo=True, dynamic_shapes=FREE, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    return lambda img_BCHW: [torch.from_numpy(value) for value in session.run(None, {image.name: img_BCHW.numpy()})]


@torch.no_grad()
def check_other_batches(export, model: nn.Module, make=images, tolerance: float = 1e-6) -> None:
    """Differences are in parts of the largest value of a map."""
    program = export(model, make(EXAMPLE))
    for batch in BATCHES:
        expected = model(make(batch))
        for theirs, ours in zip(program(make(batch)), expected, strict=True):
            assert theirs.shape == ours.shape
            assert (theirs - ours).abs().max() <= tolerance * ours.abs().max()


# ---------------------------------------------------------------- encoders and classifiers


@pytest.mark.parametrize("name", ["vit", "beit"])
@pytest.mark.parametrize("export", [traced, exported])
def test_export_of_classifiers_takes_any_batch(export, name):
    check_other_batches(export, everything(name, Scores, depth=1))


@pytest.mark.slow
@pytest.mark.parametrize("name", members(Encoder))
@pytest.mark.parametrize("export", [traced, exported])
def test_export_of_features_and_maps_takes_any_batch(export, name):
    check_other_batches(export, everything(name))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"), [("vit", Everything), ("beit", Scores), ("swin", Scores), ("swin_v2", Scores)]
)
def test_export_to_onnx_takes_any_batch(name, kind):
    check_other_batches(in_onnx, everything(name, kind), tolerance=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOADED)
@pytest.mark.parametrize("export", [traced, exported])
def test_export_of_loaded_encoders_takes_any_batch(tmp_path, export, name):
    encoder = load_encoder(sample(name).write(tmp_path / "run.pt"))
    check_other_batches(export, Everything(encoder).eval(), lambda batch: images(batch, encoder.image))


# ---------------------------------------------------------------- under a mask


class Predicting(nn.Module):
    """The prediction of a model under a mask that hides half of the cells of each image."""

    def __init__(self, *parts: str):
        super().__init__()
        self.model = assemble("random", *parts)

    def forward(self, img_BCHW: Tensor, hidden_BHW: Tensor) -> tuple[Tensor]:
        mask = PatchMask(hidden_BHW, visible=16)
        return (self.model.head(self.model.encode(img_BCHW, mask)).map_BCHW,)


@pytest.mark.slow
@pytest.mark.parametrize(
    "parts",
    [
        ("vit", "drop", "transformer"),
        ("vit", "drop", "cross_attention"),
        ("beit", "replace", "transformer"),
        ("swin", "replace", "unet"),
        ("vit", "drop", "unet"),
    ],
)
@torch.no_grad()
def test_export_under_a_mask_takes_any_batch(parts):
    model = Predicting(*parts).eval()

    def masked(batch: int) -> tuple[Tensor, Tensor]:
        img = images(batch)
        return img, model.model.sample_mask(img, generator(batch)).hidden_BHW

    program = traced(model, *masked(EXAMPLE))
    for batch in BATCHES:
        torch.testing.assert_close(program(*masked(batch)), model(*masked(batch)), rtol=0, atol=1e-6)
