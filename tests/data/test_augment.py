"""Augmentation of fine-tuning: pure functions of their seeds, equal to timm's and torchvision's on the same draws."""

import random

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F
from PIL import Image
from processes import FINETUNE
from small_data import digit, photograph
from stored_images import stored, uint16_picture
from timm.data import Mixup, create_transform
from timm.data.auto_augment import RandAugment
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import ColorJitter

from mim.build import load_config
from mim.data.augment import BatchAugment, ClassifyAugmentSettings, RandomCropFlipColour
from mim.data.settings import DataSettings
from mim.data.sources.base import Stored, size_of
from mim.data.transforms import AugmentSettings, RandomCropFlip
from mim.ops.seeding import derive_seed, host_seeded

MAE = "rand-m9-mstd0.5-inc1"
SIZE = (16, 24)


def transform(channels: int = 3, size: tuple[int, int] = SIZE, **keys) -> RandomCropFlipColour:
    data = DataSettings(image_size=size, channels=channels, mean=(0.5,) * channels, std=(0.25,) * channels)
    return RandomCropFlipColour(ClassifyAugmentSettings(**keys), data)


def pictures() -> dict[str, Stored]:
    return {"picture": photograph(), "grey": digit(), "uint8": F.pil_to_tensor(photograph())}


def channels_of(image: Stored) -> int:
    return len(image) if isinstance(image, Tensor) else len(image.getbands())


def cropped(transform: RandomCropFlip, image: Stored, seed: int) -> Stored:
    """The image after the crop and the flip, before the colours."""
    size = size_of(image)
    return transform.cut(image, transform.draw_crop(*size, seed), size)


def states() -> tuple:
    """The states of the three global generators."""
    return random.getstate(), tuple(map(str, np.random.get_state())), tuple(torch.get_rng_state().tolist())


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


# ---------------------------------------------------------------- one image

COLOURS = [
    ("picture", {"randaugment": MAE}),
    ("picture", {"jitter": 0.4}),
    ("picture", {"randaugment": MAE, "jitter": 0.4}),
    ("grey", {"randaugment": MAE, "jitter": 0.4}),
    ("uint8", {"jitter": 0.4}),
]


@pytest.mark.parametrize(("kind", "keys"), COLOURS)
def test_random_crop_flip_colour_is_a_function_of_image_and_seed(kind: str, keys: dict) -> None:
    image = pictures()[kind]
    colour, twin = (transform(channels_of(image), **keys) for _ in range(2))
    outputs = []
    for state, one in ((5, colour), (6, twin)):
        seed_everything(state)
        before = states()
        outputs.append([one(image, seed) for seed in (0, 1, 2, 3, 2**63 - 1)])
        assert states() == before
    assert all(torch.equal(first, second) for first, second in zip(*outputs, strict=True))
    assert len({tuple(out_CHW.flatten().tolist()) for out_CHW in outputs[0]}) == 5
    assert all(out_CHW.shape == (channels_of(image), *SIZE) for out_CHW in outputs[0])
    assert all(out_CHW.dtype == torch.uint8 for out_CHW in outputs[0])


@pytest.mark.parametrize(("kind", "keys"), COLOURS)
def test_random_crop_flip_colour_leaves_the_stored_image_alone(kind: str, keys: dict) -> None:
    image, untouched = pictures()[kind], pictures()[kind]
    full_image = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "flip": 0.0}
    colour = transform(channels_of(image), size=(48, 64) if kind != "grey" else (32, 32), **full_image, **keys)
    for seed in range(20):
        colour(image, seed)
    assert np.array_equal(np.asarray(image), np.asarray(untouched))


@pytest.mark.parametrize("kind", stored())
def test_random_crop_flip_colour_without_colours_is_the_transform_of_pretraining(kind: str) -> None:
    image = stored()[kind]
    colour, plain = transform(channels_of(image)), RandomCropFlip(AugmentSettings(), SIZE)
    for seed in range(10):
        assert torch.equal(colour(image, seed), plain(image, seed))


@pytest.mark.parametrize(("kind", "keys"), COLOURS)
def test_random_crop_flip_colour_changes_colours_of_that_very_crop(kind: str, keys: dict) -> None:
    image = pictures()[kind]
    colour, plain = transform(channels_of(image), **keys), RandomCropFlip(AugmentSettings(), SIZE)
    changed = [not torch.equal(colour(image, seed), plain(image, seed)) for seed in range(20)]
    assert sum(changed) > 10
    if "randaugment" not in keys:  # jitter keeps what is where
        for seed in range(20):
            pair = torch.stack(
                [colour(image, seed).float().mean(0).flatten(), plain(image, seed).float().mean(0).flatten()]
            )
            assert torch.corrcoef(pair)[0, 1] > 0.8


@pytest.mark.parametrize("kind", ["picture", "grey", "uint8"])
def test_random_crop_flip_colour_jitter_is_torchvisions(kind: str) -> None:
    """The third setting is saturation; hue stays."""
    image = pictures()[kind]
    colour, plain = transform(channels_of(image), jitter=0.3), RandomCropFlip(AugmentSettings(), SIZE)
    theirs = ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3)
    for seed in range(10):
        torch.manual_seed(derive_seed(seed, "colour"))
        expected = theirs(cropped(plain, image, seed))
        expected_CHW = expected if isinstance(expected, Tensor) else F.pil_to_tensor(expected)
        torch.manual_seed(77)
        assert torch.equal(colour(image, seed), expected_CHW)


@pytest.mark.parametrize("kind", ["picture", "grey"])
def test_random_crop_flip_colour_takes_every_strength_of_every_operation(kind: str) -> None:
    """Magnitudes are drawn around 9 and reach 10, where posterising leaves no bit."""
    image = pictures()[kind]
    colour = transform(channels_of(image), size=(8, 8), randaugment=MAE)
    for seed in range(1500):
        assert colour(image, seed).shape == (channels_of(image), 8, 8)


@pytest.mark.parametrize(("channels", "size"), [(3, (32, 48)), (1, (24, 24))])
def test_random_crop_flip_colour_takes_the_randaugment_that_timms_create_transform_makes(
    channels: int, size: tuple[int, int]
) -> None:
    """Shifts by a share of the image, bicubic, and grey of DATA.mean for what is left empty."""
    word, mean, std = "rand-m7-mstd0.5-inc1", (0.2, 0.4, 0.6)[:channels], (0.25,) * channels
    timms = create_transform(size, is_training=True, auto_augment=word, interpolation="bicubic", mean=mean, std=std)
    (theirs,) = (step for step in timms.transforms if isinstance(step, RandAugment))
    data = DataSettings(image_size=size, channels=channels, mean=mean, std=std)
    ours = RandomCropFlipColour(ClassifyAugmentSettings(randaugment=word), data)
    image = digit() if channels == 1 else photograph()
    for seed in range(150):
        crop = cropped(ours, image, seed)
        with host_seeded(derive_seed(seed, "colour")):
            expected_CHW = F.pil_to_tensor(theirs(crop))
        assert torch.equal(ours(image, seed), expected_CHW)


@pytest.mark.parametrize("channels", [1, 3])
def test_random_crop_flip_colour_fills_with_the_mean_of_the_data(channels: int) -> None:
    """What a rotation or a shift leaves empty is 0 after normalisation."""
    data = DataSettings(image_size=(32, 32), channels=channels, mean=(0.2, 0.4, 0.6)[:channels], std=(0.25,) * channels)
    colour = RandomCropFlipColour(ClassifyAugmentSettings(randaugment="rand-m9-n1-p1"), data)
    white = Image.new("L" if channels == 1 else "RGB", (64, 64), (255,) * channels)
    corners = {tuple(colour(white, seed)[:, 0, 0].tolist()) for seed in range(100)}
    assert (51, 102, 153)[:channels] in corners
    assert (128,) * channels not in corners


@pytest.mark.parametrize("channels", [1, 3])
def test_randaugment_of_an_array_of_8_bits_is_that_of_the_picture(channels: int) -> None:
    """Decoders of JPEG give arrays. At the image's own size nothing is resized, which could differ in the last bit."""
    picture = digit() if channels == 1 else photograph(32, 48)
    full_image = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0)}
    colour = transform(channels, size=(picture.height, picture.width), randaugment=MAE, **full_image)
    for seed in range(20):
        assert torch.equal(colour(F.pil_to_tensor(picture), seed), colour(picture, seed))


@pytest.mark.parametrize("image", [uint16_picture(), uint16_picture().float()])
def test_randaugment_refuses_arrays_with_a_way_out(image: Tensor) -> None:
    colour = transform(1, randaugment=MAE)
    message = rf"AUGMENT\.randaugment .*arrays of {image.dtype}: turn it off with AUGMENT\.randaugment ''"
    with pytest.raises(ValueError, match=message):
        colour(image, 0)


def test_jitter_does_not_cut_what_an_array_holds() -> None:
    """Torchvision clamps floats to [0, 1]; the levels of a microscope lie anywhere."""
    levels_CHW = stored()["float32"]
    with pytest.raises(ValueError, match=r"AUGMENT\.jitter .*arrays of torch\.float32"):
        transform(3, jitter=0.4)(levels_CHW, 0)


def test_jitter_of_16_bits_is_that_of_8() -> None:
    grey_CHW = uint16_picture()
    colour = transform(1, size=(32, 32), jitter=0.4, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0)
    for seed in range(10):
        fine, coarse = colour(grey_CHW, seed), colour((grey_CHW.int() // 257).to(torch.uint8), seed)
        assert fine.dtype == torch.uint16
        assert (fine.float() / 257 - coarse.float()).abs().max() < 3


@pytest.mark.parametrize(("key", "value"), [("randaugment", MAE), ("jitter", 0.4)])
@pytest.mark.parametrize("channels", [2, 4, 12])
def test_colours_of_neither_grey_nor_rgb_are_refused_with_the_key_named(channels: int, key: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"AUGMENT\.{key} is {value}.* DATA\.channels is {channels}"):
        transform(channels, **{key: value})
    with pytest.raises(ValueError, match=rf"AUGMENT\.{key} is {value}.* DATA\.channels is {channels}"):
        load_config(FINETUNE, ["DATA.channels", str(channels), f"AUGMENT.{key}", str(value)])


@pytest.mark.parametrize("word", ["foo", "augmix-m9", "rand-m9-q3", "rand-mnine", "rand-m9-tNothing"])
def test_randaugment_refuses_a_word_that_is_not_timms(word: str) -> None:
    with pytest.raises(ValueError, match=rf"AUGMENT\.randaugment is '{word}'.*such as {MAE}"):
        ClassifyAugmentSettings(randaugment=word)


@pytest.mark.parametrize(
    ("key", "value"),
    [("erase", 1.5), ("erase", -0.1), ("jitter", -1.0), ("mixup", -0.8), ("cutmix", -1.0)],
)
def test_classify_augment_settings_out_of_range_are_refused(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"AUGMENT\.{key} is {value}"):
        ClassifyAugmentSettings(**{key: value})


def test_classify_augment_settings_keep_the_checks_of_the_crop() -> None:
    with pytest.raises(ValueError, match=r"AUGMENT\.crop_scale"):
        ClassifyAugmentSettings(crop_scale=(0.8, 0.2))


# ---------------------------------------------------------------- a batch


def flat(batch: int = 8, size: tuple[int, int] = (32, 48), channels: int = 3) -> Tensor:
    """Images each of one level of its own, far from noise."""
    return (10.0 + torch.arange(batch)[:, None, None, None]).expand(batch, channels, *size).clone()


def batch_augment(classes: int = 10, batch: int = 8, smoothing: float = 0.0, **keys) -> BatchAugment:
    return BatchAugment(ClassifyAugmentSettings(**keys), classes, batch, smoothing)


def labels(batch: int = 8) -> Tensor:
    return torch.arange(batch) % 10


@pytest.mark.parametrize("share", [0.25, 0.8])
def test_batch_augment_erases_the_share_of_images_asked_for(share: float) -> None:
    erase = batch_augment(erase=share)
    erased, areas = [], []
    for seed in range(100):
        img_BCHW, labels_B = erase(flat(), labels(), seed)
        changed_BHW = (img_BCHW != flat()).any(dim=1)
        erased += changed_BHW.flatten(1).any(dim=1).tolist()
        areas += [area for area in changed_BHW.float().mean(dim=(1, 2)).tolist() if area]
        assert torch.equal(labels_B, labels())
    assert np.mean(erased) == pytest.approx(share, abs=4 * (share * (1 - share) / 800) ** 0.5)
    assert min(areas) > 0.01
    assert max(areas) < 0.36  # timm: from .02 to 1/3
    assert np.mean(areas) == pytest.approx((0.02 + 1 / 3) / 2, abs=0.03)


def test_batch_augment_erases_one_whole_rectangle_of_noise_in_every_channel() -> None:
    img_BCHW, _ = batch_augment(erase=1.0, batch=64)(flat(64), labels(64), 3)
    for before_CHW, after_CHW in zip(flat(64), img_BCHW, strict=True):
        changed_CHW = before_CHW != after_CHW
        if not changed_CHW.any():  # timm gives up after ten rectangles that do not fit
            continue
        rows, columns = changed_CHW.any(dim=(0, 2)).nonzero(), changed_CHW.any(dim=(0, 1)).nonzero()
        inside = after_CHW[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert changed_CHW.sum() == inside.numel()
        assert inside.abs().max() < 6  # standard normal, each pixel and channel by itself
        assert inside.unique().numel() == inside.numel()
    assert (img_BCHW != flat(64)).flatten(1).any(dim=1).sum() > 60


def test_batch_augment_erases_as_timm_does_on_the_same_draws() -> None:
    ours, _ = batch_augment(erase=0.5)(flat(), labels(), 9)
    seed_everything(9)
    assert torch.equal(ours, RandomErasing(0.5, mode="pixel", device="cpu")(flat()))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_batch_augment_mixes_as_timm_does_on_the_same_draws(mixup: float, cutmix: float, smoothing: float) -> None:
    mix = batch_augment(mixup=mixup, cutmix=cutmix, smoothing=smoothing)
    theirs = Mixup(mixup, cutmix, label_smoothing=smoothing, num_classes=10)
    for seed in range(8):
        img_BCHW, weights_BK = mix(flat(), labels(), seed)
        seed_everything(seed)
        expected_BCHW, expected_BK = theirs(flat(), labels())
        assert torch.equal(img_BCHW, expected_BCHW)
        assert torch.equal(weights_BK, expected_BK)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_batch_augment_weights_say_how_much_of_which_image_is_there(
    mixup: float, cutmix: float, smoothing: float
) -> None:
    mix, kinds = batch_augment(mixup=mixup, cutmix=cutmix, smoothing=smoothing), set()
    for seed in range(20):
        img_BCHW, weights_BK = mix(flat(), labels(), seed)
        assert weights_BK.shape == (8, 10)
        torch.testing.assert_close(weights_BK.sum(dim=1), torch.ones(8))
        assert weights_BK.min() >= smoothing / 10 - 1e-6
        own_share = (weights_BK[torch.arange(8), labels()] - smoothing / 10) / (1 - smoothing)
        assert own_share.std() < 1e-6  # one share for the whole batch
        level = own_share * (10 + torch.arange(8)) + (1 - own_share) * (10 + torch.arange(8).flip(0))
        torch.testing.assert_close(img_BCHW.mean(dim=(1, 2, 3)), level, rtol=1e-4, atol=1e-3)
        blended = len(img_BCHW[0].unique()) == 1 and img_BCHW[0, 0, 0, 0] % 1 != 0
        pasted = len(img_BCHW[0].unique()) == 2
        kinds |= {kind for kind, is_it in (("blended", blended), ("pasted", pasted)) if is_it}
    assert kinds == ({"blended"} if mixup else set()) | ({"pasted"} if cutmix else set())


def test_batch_augment_without_mixing_gives_the_labels_back() -> None:
    img_BCHW, labels_B = batch_augment(smoothing=0.1)(flat(), labels(), 0)
    assert torch.equal(img_BCHW, flat())
    assert torch.equal(labels_B, labels())
    assert labels_B.dtype == torch.int64


def test_batch_augment_is_a_function_of_its_seed() -> None:
    every = batch_augment(erase=0.5, mixup=0.8, cutmix=1.0)
    outputs = []
    for state in (1, 2):
        seed_everything(state)
        before = states()
        outputs.append([every(flat(), labels(), seed)[0] for seed in (0, 1, 2**63 - 1)])
        assert states() == before
    assert all(torch.equal(first, second) for first, second in zip(*outputs, strict=True))
    assert len({tuple(img_BCHW.flatten().tolist()) for img_BCHW in outputs[0]}) == 3


@pytest.mark.parametrize("keys", [{"mixup": 0.8}, {"cutmix": 1.0}])
def test_batch_augment_refuses_to_mix_an_odd_batch(keys: dict) -> None:
    with pytest.raises(ValueError, match=r"DATA\.batch_size is 7: .*in pairs, so it must be even"):
        batch_augment(batch=7, **keys)
    batch_augment(batch=7, erase=0.5, smoothing=0.1)
    ((key, value),) = keys.items()
    with pytest.raises(ValueError, match=r"DATA\.batch_size is 7"):
        load_config(FINETUNE, ["DATA.batch_size", "7", "TRAIN.batch", "7", f"AUGMENT.{key}", str(value)])


# ---------------------------------------------------------------- the generators


def draw() -> tuple[float, ...]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_host_seeded_starts_all_three_generators_and_lets_them_go_on() -> None:
    for seed in (3, 2**32 + 3, 2**63 - 1):
        seed_everything(1)
        draw()
        expected = [draw() for _ in range(2)]
        seed_everything(1)
        draw()
        with host_seeded(seed):
            first = draw()
        assert [draw() for _ in range(2)] == expected
        with host_seeded(seed):
            assert draw() == first
        with host_seeded(seed - 1):
            assert not set(draw()) & set(first)


def test_host_seeded_restores_them_where_its_body_raises() -> None:
    before = states()
    with pytest.raises(ZeroDivisionError), host_seeded(3):
        _ = 1 / (draw()[0] * 0)
    assert states() == before


def test_host_seeded_nests() -> None:
    with host_seeded(3):
        expected = [draw() for _ in range(2)]
    with host_seeded(3):
        draws = [draw()]
        with host_seeded(4):
            draw()
        draws.append(draw())
    assert draws == expected
