"""examples/detection.py: a detector on any encoder, its gradients, and that it learns to find shapes.

Shapes: C channels, H W pixels, h w entries high and wide.
"""

import runpy
import sys
from types import SimpleNamespace

import pytest
import torch
from detections import average_precision
from PIL import Image
from processes import ROOT
from small_models import members, small

from mim.encoders import Encoder
from mim.structures import ImageSpec

IMAGE = ImageSpec(1, 32, 32)
FEW = {  # proposals, so that a step takes a tenth of a second
    "rpn_pre_nms_top_n_train": 100,
    "rpn_post_nms_top_n_train": 50,
    "rpn_pre_nms_top_n_test": 100,
    "rpn_post_nms_top_n_test": 50,
    "box_batch_size_per_image": 16,
    "box_detections_per_img": 10,
}


@pytest.fixture(scope="module")
def detection() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "examples" / "detection.py"), run_name="detection"))


def encoder_of(name: str = "vit", image: ImageSpec = IMAGE, **keys) -> Encoder:
    torch.manual_seed(0)
    return small(Encoder.named(name), image, **{"hidden": "none", **keys})


def detector_of(detection, encoder: Encoder, frozen: bool = False):
    torch.manual_seed(1)
    pyramid = detection.SimpleFeaturePyramid(encoder, width=16, frozen=frozen)
    return detection.build_detector(pyramid, 3, mean=[0.5], std=[0.25], anchor=2, **FEW)


def loss_of(detection, detector, seed: int = 0) -> torch.Tensor:
    images, targets = detection.draw_shapes(2, torch.Generator().manual_seed(seed), detector.backbone.encoder.image)
    return sum(detector.train()(images, targets).values())


@pytest.mark.parametrize("name", members(Encoder))
def test_every_parameter_of_a_detector_gets_a_gradient_on_any_encoder(detection, name):
    encoder = encoder_of(name, ImageSpec(1, 32, 64))
    detector = detector_of(detection, encoder)
    loss_of(detection, detector).backward()
    learned = {key: value for key, value in detector.named_parameters() if value.requires_grad}
    without = [key for key, value in learned.items() if value.grad is None or not value.grad.any()]
    assert without == []


def test_the_pyramid_has_the_sizes_of_its_strides(detection):
    pyramid = detection.SimpleFeaturePyramid(encoder_of(image=ImageSpec(1, 32, 64)), width=16)
    levels = pyramid(torch.randn(2, 1, 32, 64))
    assert {name: tuple(level.shape[1:]) for name, level in levels.items()} == {
        "0": (16, 8, 16),
        "1": (16, 4, 8),
        "2": (16, 2, 4),
        "3": (16, 1, 2),
        "pool": (16, 1, 1),
    }


def test_a_level_of_a_hierarchical_encoder_reads_the_stage_of_its_stride(detection):
    encoder = encoder_of("swin")  # strides 4 and 8
    pyramid = detection.SimpleFeaturePyramid(encoder, width=16).eval()
    img_BCHW = torch.randn(1, 1, 32, 32)
    maps, levels = encoder.eval().feature_maps(img_BCHW, (4, 8)), pyramid(img_BCHW)
    for number, stride in enumerate((4, 8)):
        assert torch.equal(levels[str(number)], pyramid.levels[number](maps[stride]))
    pooled = torch.nn.functional.max_pool2d(maps[8], 2)
    torch.testing.assert_close(levels["2"], pyramid.levels[2][1:](pooled))


def test_a_frozen_encoder_stays_as_it_is(detection):
    encoder = encoder_of(drop_path=0.5)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    detector = detector_of(detection, encoder, frozen=True)
    detection.train(detector, steps=1, batch=1, rate=0.1)
    assert not encoder.training
    assert detector.training
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name])
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert all(parameter.grad is not None for parameter in detector.backbone.levels.parameters())


def test_an_encoder_whose_stride_is_no_power_of_two_is_refused(detection):
    with pytest.raises(ValueError, match=r"strides of \[12\] pixels, and RoIAlign needs powers of two"):
        detection.SimpleFeaturePyramid(encoder_of(image=ImageSpec(1, 24, 24), patch=12))


def test_drawn_shapes_are_bright_where_their_masks_are_and_fill_their_boxes(detection):
    images, targets = detection.draw_shapes(20, torch.Generator().manual_seed(0), ImageSpec(2, 48, 64))
    assert {label for target in targets for label in target["labels"].tolist()} == {1, 2}
    for image_CHW, target in zip(images, targets, strict=True):
        assert target["masks"].sum(0).max() == 1  # none covers another
        assert torch.equal(image_CHW[0] >= 0.5, target["masks"].sum(0) == 1)
        for label, mask_HW, (left, top, right, bottom) in zip(
            target["labels"], target["masks"], target["boxes"].long(), strict=True
        ):
            inside_HW = mask_HW[top:bottom, left:right]
            assert inside_HW.sum() == mask_HW.sum()
            assert inside_HW.float().mean() == (1 if label == 1 else pytest.approx(torch.pi / 4, abs=0.12))


class Answering(torch.nn.Module):
    """A detector that gives answers in turn."""

    def __init__(self, answers):
        super().__init__()
        self.answers = list(answers)

    def forward(self, images):
        return [self.answers.pop(0)]


def test_average_precision_by_hand():
    """Three objects; the answers in order are right, wrong, right once more, and right: precision 1, 1/2, 1/3, 2/4."""
    blocks = torch.zeros(4, 1, 8, 8)
    for number in range(4):
        blocks[number, 0, 2 * number : 2 * number + 2] = 1
    ones = lambda count: torch.ones(count, dtype=torch.long)  # noqa: E731
    targets = [{"labels": ones(2), "masks": blocks[:2, 0]}, {"labels": ones(1), "masks": blocks[:1, 0]}]
    answers = [
        {"labels": ones(3), "scores": torch.tensor([0.9, 0.8, 0.7]), "masks": blocks[[0, 3, 0]]},
        {"labels": ones(1), "scores": torch.tensor([0.6]), "masks": blocks[[0]]},
    ]
    images = [torch.zeros(1, 8, 8)] * 2
    assert average_precision(Answering(answers), images, targets, 1) == pytest.approx((1 + 1 / 2) / 3)


@pytest.mark.slow
def test_a_detector_learns_to_find_shapes(detection, tell):
    """Chance is what its answers to one image are worth for another one."""
    detector = detector_of(detection, encoder_of(width=32))
    losses = detection.train(detector, steps=80, batch=4, rate=4e-3)
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    images, targets = detection.draw_shapes(20, torch.Generator().manual_seed(9), IMAGE)
    learned = [average_precision(detector.eval(), images, targets, label) for label in (1, 2)]
    chance = [average_precision(detector, images, targets[1:] + targets[:1], label) for label in (1, 2)]
    tell(f"AP50 of drawn shapes after 80 steps: {learned}, by chance {chance}")
    assert min(learned) > 0.2
    assert max(chance) < 0.05


@pytest.mark.slow
def test_the_script_trains_on_a_file_and_draws_its_answers(tmp_path, monkeypatch, capsys):
    from converted import sample

    path = sample("mae").write(tmp_path / "run.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["detection.py", str(path), "--steps", "2", "--frozen"])
    runpy.run_path(str(ROOT / "examples" / "detection.py"), run_name="__main__")
    assert "loss" in capsys.readouterr().out
    assert Image.open("detections.png").size == (6 * 192, 192)  # 32 px, enlarged
