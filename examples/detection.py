"""Detection: Mask R-CNN of torchvision on a pretrained encoder, by ViTDet's simple feature pyramid.

`python examples/detection.py runs/mae` trains on shapes that it draws, prints the loss and writes detections.png.
For images of your own, replace `draw_shapes`: docs/detection.md.

Shapes: B batch, C channels, H W pixels, N objects.
"""

import argparse

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign, masks_to_boxes
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

import mim
from mim.encoders import Encoder
from mim.structures import ImageSpec

STRIDES = (4, 8, 16, 32)
CLASSES = ("background", "rectangle", "ellipse")


class SimpleFeaturePyramid(nn.Module):
    """Maps of strides 4, 8, 16, 32 and 64, all `width` wide, from an encoder; the backbone of a torchvision detector.

    Source: ViTDet (arXiv:2203.16527): a plain encoder's last map is enlarged by transposed convolutions or reduced by
    pooling, and nothing else connects the levels. A hierarchical encoder gives each level the stage of its stride.

    Args:
        encoder: of mim.load_encoder. Images must have its size.
        width: channels of each level; 256 as published.
        frozen: keep the encoder as it is, in eval mode; the pyramid and the detector learn.

    Raises ValueError where a stride of the encoder is no power of two, which torchvision's RoIAlign needs.
    """

    def __init__(self, encoder: Encoder, width: int = 256, frozen: bool = False):
        super().__init__()
        widths = {stage.stride: stage.width for stage in encoder.spec.stages} | {
            encoder.spec.stride: encoder.spec.width
        }
        if odd := [stride for stride in widths if stride & (stride - 1)]:
            raise ValueError(f"{encoder.title} has strides of {odd} pixels, and RoIAlign needs powers of two")
        # the coarsest map that is not coarser than the level, or the finest; powers of two differ by their bits
        self.sources = [max((own for own in widths if own <= stride), default=min(widths)) for stride in STRIDES]
        self.levels = nn.ModuleList(
            _level(widths[source], source.bit_length() - stride.bit_length(), width)
            for source, stride in zip(self.sources, STRIDES, strict=True)
        )
        self.encoder, self.frozen, self.out_channels = encoder, frozen, width
        if frozen:
            encoder.requires_grad_(False)

    def train(self, mode: bool = True) -> "SimpleFeaturePyramid":
        """A frozen encoder stays in eval mode: no drop path, no new statistics."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def forward(self, img_BCHW: Tensor) -> dict[str, Tensor]:
        """The levels by name, the finest first. The last one, `pool`, is for the region proposals alone."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            maps = self.encoder.feature_maps(img_BCHW, sorted(set(self.sources)))
        levels = [level(maps[source]) for level, source in zip(self.levels, self.sources, strict=True)]
        return dict(zip([*"0123", "pool"], [*levels, levels[-1][..., ::2, ::2]], strict=True))


def _level(source: int, doublings: int, width: int) -> nn.Sequential:
    """Doubles height and width as often, or halves them where `doublings` is negative, then two convolutions."""
    layers: list[nn.Module] = [nn.MaxPool2d(2, ceil_mode=True) for _ in range(-doublings)]
    for number in range(doublings):
        if number:
            layers += [LayerNorm2d(source), nn.GELU()]
        layers.append(nn.ConvTranspose2d(source, source // 2, kernel_size=2, stride=2))
        source //= 2
    layers += [nn.Conv2d(source, width, kernel_size=1, bias=False), LayerNorm2d(width)]
    layers += [nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False), LayerNorm2d(width)]
    return nn.Sequential(*layers)


def build_detector(
    pyramid: SimpleFeaturePyramid, classes: int, mean: list[float], std: list[float], anchor: int = 8, **options: object
) -> MaskRCNN:
    """Mask R-CNN on an encoder.

    Args:
        pyramid: on the encoder.
        classes: number of classes, background included.
        mean: of the channels, as in pretraining (DATA.mean); images are from 0 to 1.
        std: the same of DATA.std.
        anchor: side of an anchor box in entries of its level; 8 as published, less for small objects.
        options: more arguments of MaskRCNN.
    """
    image, width = pyramid.encoder.image, pyramid.out_channels
    sides = tuple((anchor * stride,) for stride in (*STRIDES, 2 * STRIDES[-1]))
    return MaskRCNN(
        pyramid,
        image_mean=mean,
        image_std=std,
        fixed_size=(image.width, image.height),  # images are stretched to the encoder's size
        size_divisible=1,  # and never padded
        rpn_anchor_generator=AnchorGenerator(sides, ((0.5, 1.0, 2.0),) * len(sides)),
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=7, sampling_ratio=2),
        box_head=TwoMLPHead(width * 7**2, 4 * width),
        box_predictor=FastRCNNPredictor(4 * width, classes),
        mask_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=14, sampling_ratio=2),
        mask_head=MaskRCNNHeads(width, (width,) * 4, 1),
        mask_predictor=MaskRCNNPredictor(width, width, classes),
        **options,
    )


def draw_shapes(count: int, generator: torch.Generator, image: ImageSpec) -> tuple[list[Tensor], list[dict]]:
    """Images (C, H, W) from 0 to 1 with one to four rectangles and ellipses on noise, and torchvision's targets."""
    height, width, channels = image.height, image.width, image.channels
    draw = lambda low, high: int(torch.randint(low, high + 1, (), generator=generator))  # noqa: E731
    images, targets = [], []
    for _ in range(count):
        image_CHW = 0.3 * torch.rand(channels, height, width, generator=generator)
        labels, masks = list[int](), list[Tensor]()
        for corner in range(4):  # at most one shape in each, so that none covers another
            tall, wide = draw(height // 6, height // 3), draw(width // 6, width // 3)
            top = draw(0, height // 2 - tall) + height // 2 * (corner // 2)
            left = draw(0, width // 2 - wide) + width // 2 * (corner % 2)
            down_H1 = (torch.arange(height)[:, None] + 0.5 - top) / tall - 0.5
            across_W = (torch.arange(width) + 0.5 - left) / wide - 0.5
            label = draw(0 if labels else 1, 2)
            shapes_HW = [torch.maximum(down_H1.abs(), across_W.abs()), torch.hypot(down_H1, across_W)]
            if label:
                labels.append(label)
                masks.append(shapes_HW[label - 1] <= 0.5)
                image_CHW[:, masks[-1]] = 0.5 + 0.5 * torch.rand(channels, 1, generator=generator)
        boxes_N4 = masks_to_boxes(torch.stack(masks)) + torch.tensor([0, 0, 1, 1])  # right and bottom edges
        images.append(image_CHW)
        targets.append({"boxes": boxes_N4, "labels": torch.tensor(labels), "masks": torch.stack(masks).byte()})
    return images, targets


def train(detector: MaskRCNN, steps: int, batch: int, rate: float, seed: int = 0) -> list[float]:
    """Trains on drawn shapes; the loss of each step."""
    trained = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    generator, losses, device = torch.Generator().manual_seed(seed), list[float](), trained[0].device
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.05)
    detector.train()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, 10 * (step + 1) / steps, 2 * (steps - step) / steps)
        images, targets = draw_shapes(batch, generator, detector.backbone.encoder.image)
        targets = [{name: value.to(device) for name, value in target.items()} for target in targets]
        loss = sum(detector([each.to(device) for each in images], targets).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def picture(detector: MaskRCNN, images: list[Tensor]) -> Tensor:
    """(3, H, W) uint8: images side by side, with the masks and classes of sure detections."""
    columns = []
    for image_CHW, answer in zip(images, detector(images), strict=True):
        sure = answer["scores"] > 0.5
        mask_HW = (answer["masks"][sure, 0] > 0.5).any(dim=0)
        picture_CHW = draw_segmentation_masks(image_CHW.expand(3, -1, -1), mask_HW, colors="orange")
        zoom = max(1, 192 // len(mask_HW))  # so that names can be read
        picture_CHW = picture_CHW.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)
        names = [CLASSES[label] for label in answer["labels"][sure]]
        columns.append(draw_bounding_boxes(picture_CHW, zoom * answer["boxes"][sure], names))
    return (255 * torch.cat(columns, dim=2)).byte()


def main() -> None:
    """Trains on the encoder of a run or of a file, and draws its answers to other shapes."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("weights", help="run folder, checkpoint or file of mim.load_encoder")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--mean", type=float, nargs="+", default=[0.5], help="DATA.mean of the pretraining")
    parser.add_argument("--std", type=float, nargs="+", default=[0.25], help="DATA.std of the pretraining")
    parser.add_argument("--frozen", action="store_true", help="leave the encoder as it is")
    args = parser.parse_args()
    pyramid = SimpleFeaturePyramid(mim.load_encoder(args.weights), width=32, frozen=args.frozen)
    detector = build_detector(pyramid, len(CLASSES), args.mean, args.std, anchor=4, box_batch_size_per_image=64)
    losses = train(detector, args.steps, batch=4, rate=2e-3)
    print(f"loss {losses[0]:.3f} at the first step, {losses[-1]:.3f} at the last")
    images, _ = draw_shapes(6, torch.Generator().manual_seed(1), pyramid.encoder.image)
    to_pil_image(picture(detector.eval(), images)).save("detections.png")


if __name__ == "__main__":
    main()
