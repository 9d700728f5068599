"""The family of augmentations: each against numpy or its statistics, with masks, seeds and stored types."""

from pathlib import Path

import numpy as np
import pytest
import torch
from label_files import write_mask
from torch import Tensor

from mim import build
from mim.data.augment import RandomCropFlipColour
from mim.data.augmentations.base import Augmentation, Augmentations
from mim.data.augmentations.geometric import QuarterTurns, VerticalFlip
from mim.data.augmentations.values import ChannelDropout, Colour, Noise
from mim.data.labels.join import join_labels
from mim.data.labels.settings import LabelSettings
from mim.data.loading.dataset import ImageDataset
from mim.data.loading.loader import batches
from mim.data.settings import AugmentSettings, ClassifyAugmentSettings, DataSettings
from mim.data.sources.base import Source
from mim.data.sources.folder import Folder
from mim.data.transforms import RandomCropFlip
from mim.errors import ConfigError

CHANNELS, SIDE = 5, 12
MEAN, STD = (0.5, 0.4, 0.3, 0.6, 0.2), (0.2, 0.1, 0.3, 0.2, 0.1)
DATA = DataSettings(channels=CHANNELS, image_size=(SIDE, SIDE), mean=MEAN, std=STD)
TOP = {"uint8": 255, "uint16": 65535}
WHOLE = AugmentSettings(crop_scale=(1, 1), crop_ratio=(1, 1), flip=0)
STORED = ("uint8", "uint16", "float32")


def picture(dtype: str, side: int = SIDE) -> Tensor:
    """Values over the whole range of a type; of floats, from -3 to 3."""
    values = np.random.default_rng(0).random((CHANNELS, side, side))
    return torch.from_numpy((values * TOP[dtype] if dtype in TOP else values * 6 - 3).astype(dtype))


def results(part: Augmentation, image_CHW: Tensor, seeds: int = 200) -> list[np.ndarray]:
    return [Augmentations((part,)).image(image_CHW, seed).numpy() for seed in range(seeds)]


# -------------------------------------------------------------------- pixels that move


@pytest.mark.parametrize("dtype", STORED)
def test_vertical_flip_is_numpys_with_its_probability(dtype: str) -> None:
    image_CHW = picture(dtype)
    flipped = np.flip(image_CHW.numpy(), axis=1)
    outcomes = results(VerticalFlip(DATA, probability=0.3), image_CHW, 400)
    share = np.mean([np.array_equal(each, flipped) for each in outcomes])
    assert all(np.array_equal(each, flipped) or np.array_equal(each, image_CHW.numpy()) for each in outcomes)
    assert abs(share - 0.3) < 0.07  # three standard deviations
    assert np.array_equal(image_CHW.numpy(), picture(dtype).numpy())  # the stored image stays
    assert {each.dtype for each in outcomes} == {np.dtype(dtype)}


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("turns", [(0, 1, 2, 3), (1,), (0, 2)])
def test_quarter_turns_are_numpys_and_equally_likely(dtype: str, turns: tuple[int, ...]) -> None:
    image_CHW = picture(dtype)
    expected = {count: np.rot90(image_CHW.numpy(), count, axes=(1, 2)) for count in range(4)}
    counts = dict.fromkeys(range(4), 0)
    for each in results(QuarterTurns(DATA, turns=turns), image_CHW, 400):
        (count,) = [count for count, turned in expected.items() if np.array_equal(each, turned)]
        counts[count] += 1
    assert {count for count, number in counts.items() if number} == set(turns)
    assert all(abs(counts[count] / 400 - 1 / len(turns)) < 0.08 for count in turns)


def test_half_turns_are_for_images_that_are_not_square() -> None:
    image_CHW = torch.from_numpy(np.random.default_rng(0).random((3, 6, 10)))
    part = QuarterTurns(DataSettings(image_size=(6, 10)), turns=(2,))
    assert np.array_equal(part.image(image_CHW, torch.Generator()).numpy(), np.rot90(image_CHW.numpy(), 2, (1, 2)))


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Square pictures whose grey levels are ten times their classes, with masks."""
    folder = tmp_path_factory.mktemp("masks")
    for number in range(4):
        mask_HW = np.random.default_rng(number).integers(9, size=(SIDE, SIDE)).astype(np.uint8)
        write_mask(folder / "images" / f"{number}.png", mask_HW * 10)
        write_mask(folder / "masks" / f"{number}.png", mask_HW)
    train = Folder("train", DataSettings(path=str(folder / "images"), channels=1), val_share=0)
    settings = LabelSettings(masks=str(folder / "masks"), names=tuple("abcdefghi"))
    return join_labels(train, Folder("val", train.settings, val_share=0), settings)[0]


def test_masks_move_exactly_as_their_images(classes: Source) -> None:
    data = DataSettings(channels=1, image_size=(SIDE, SIDE))
    parts = Augmentations((VerticalFlip(data), QuarterTurns(data), QuarterTurns(data), VerticalFlip(data)))
    moving = ImageDataset(classes, RandomCropFlip(WHOLE, (SIDE, SIDE), parts), 0, repeats=2, masks=True)
    still = ImageDataset(classes, RandomCropFlip(WHOLE, (SIDE, SIDE)), 0, repeats=2, masks=True)
    keys = [(epoch, index) for epoch in range(10) for index in range(4)]
    moved, unmoved = moving.batch(keys), still.batch(keys)
    assert torch.equal(moved.images_BCHW[:, 0].long(), moved.labels * 10)
    changed_B = (moved.labels != unmoved.labels).flatten(1).any(1)
    assert 0.8 < changed_B.float().mean() < 1  # 7 of the 8 symmetries of a square change a picture
    assert not torch.equal(moved.labels[0::2], moved.labels[1::2])  # two crops of an image have seeds of their own
    noisy = Augmentations((Noise(DataSettings(channels=1, std=(0.2,), mean=(0.5,))),))
    labels = ImageDataset(classes, RandomCropFlip(WHOLE, (SIDE, SIDE), noisy), 0, repeats=2, masks=True).batch(keys)
    assert torch.equal(labels.labels, unmoved.labels)
    assert not torch.equal(labels.images_BCHW, unmoved.images_BCHW)


# -------------------------------------------------------------------- seeds


def every_part(data: DataSettings) -> Augmentations:
    return Augmentations(
        (VerticalFlip(data), QuarterTurns(data), Noise(data), Noise(data), Colour(data), ChannelDropout(data))
    )


def test_augmentations_are_functions_of_image_and_seed_with_draws_of_their_own() -> None:
    image_CHW, parts = picture("float32"), every_part(DATA)
    state = torch.get_rng_state()
    assert torch.equal(parts.image(image_CHW, 3), every_part(DATA).image(image_CHW, 3))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(parts.image(image_CHW, 3), parts.image(image_CHW, 4))
    one, two = (Augmentations((Noise(DATA),) * count).image(image_CHW, 3) - image_CHW for count in (1, 2))
    assert not torch.allclose(two, 2 * one, atol=1e-3)  # the second noise is another
    assert Augmentations(()).image(image_CHW, 3) is image_CHW


def test_augmentations_follow_the_crop_and_the_colours_of_fine_tuning() -> None:
    image_CHW = torch.from_numpy(np.random.default_rng(0).integers(256, size=(3, 40, 50)).astype(np.uint8))
    data = DataSettings(image_size=(SIDE, SIDE), mean=MEAN[:3], std=STD[:3])
    parts, settings = every_part(data), ClassifyAugmentSettings(jitter=0.4)
    for seed in range(5):
        for plain, augmented in (
            (RandomCropFlip(settings, (SIDE, SIDE)), RandomCropFlip(settings, (SIDE, SIDE), parts)),
            (RandomCropFlipColour(settings, data), RandomCropFlipColour(settings, data, parts)),
        ):
            assert torch.equal(augmented(image_CHW, seed), parts.image(plain(image_CHW, seed), seed))


def test_augmentations_are_the_same_in_workers(classes: Source) -> None:
    data = DataSettings(channels=1, image_size=(8, 8), mean=(0.2,), std=(0.1,))
    parts = Augmentations((QuarterTurns(data), Noise(data), Colour(data)))
    images = ImageDataset(classes, RandomCropFlip(AugmentSettings(), (8, 8), parts), 5, masks=True)
    (here,), (there,) = (list(batches(images, [[(2, 0), (1, 3)]], workers)) for workers in (0, 1))
    assert torch.equal(here.images_BCHW, there.images_BCHW)
    assert torch.equal(here.labels, there.labels)


# -------------------------------------------------------------------- values that change


@pytest.mark.parametrize("dtype", STORED)
def test_noise_has_the_deviation_of_its_share_of_each_channels(dtype: str) -> None:
    image_CHW = torch.full((CHANNELS, 60, 60), 0.5 * TOP.get(dtype, 1)).to(getattr(torch, dtype))
    noisy = np.stack(results(Noise(DATA, std=0.2), image_CHW, 10)).astype(np.float64)
    noise_NCHW = (noisy - image_CHW.numpy().astype(np.float64)) / TOP.get(dtype, 1)
    spread_C = noise_NCHW.std(axis=(0, 2, 3))
    rounding = 1 / 12 / TOP[dtype] ** 2 if dtype in TOP else 0  # the variance of a rounding to whole levels
    np.testing.assert_allclose(spread_C, np.sqrt((0.2 * np.array(STD)) ** 2 + rounding), rtol=0.02)
    assert np.abs(noise_NCHW.mean(axis=(0, 2, 3)) / spread_C).max() < 4 / np.sqrt(36_000)
    between = np.corrcoef(noise_NCHW.transpose(1, 0, 2, 3).reshape(CHANNELS, -1))
    assert np.abs(between - np.eye(CHANNELS)).max() < 0.03  # each channel has noise of its own


def test_values_are_clipped_to_their_type_and_floats_are_not() -> None:
    strong = Noise(DATA, std=5)
    for dtype, top in TOP.items():
        values = results(strong, picture(dtype), 1)[0]
        assert (values.dtype, values.min(), values.max()) == (np.dtype(dtype), 0, top)
        assert 0.2 < np.mean((values == 0) | (values == top)) < 0.9
    values = results(strong, picture("float32"), 1)[0]
    assert values.min() < -3
    assert values.max() > 3


def test_noise_leaves_images_alone_as_often_as_it_says() -> None:
    image_CHW = picture("uint8")
    outcomes = results(Noise(DATA, probability=0.25), image_CHW, 400)
    assert abs(np.mean([not np.array_equal(each, image_CHW.numpy()) for each in outcomes]) - 0.25) < 0.07


def quotients(part: Colour) -> np.ndarray:
    """Of the distances from the mean of the channel, (N, C): those of the result to those of the image."""
    image_CHW = picture("float32")
    images_NCHW = np.stack([image_CHW.numpy(), *results(part, image_CHW)])
    distances_NCHW = images_NCHW - images_NCHW.mean(axis=(2, 3), keepdims=True)
    every_NCHW = distances_NCHW[1:] / distances_NCHW[0]
    np.testing.assert_allclose(every_NCHW, np.broadcast_to(every_NCHW[:, :, :1, :1], every_NCHW.shape), atol=2e-3)
    return every_NCHW[:, :, 0, 0]


def test_colour_multiplies_values_distances_and_channels_by_factors_in_their_range() -> None:
    image_CHW = picture("float32")
    means_C = image_CHW.numpy().mean(axis=(1, 2))
    for key in ("brightness", "contrast", "channels"):
        part = Colour(DATA, **{"brightness": 0.0, "contrast": 0.0, key: 0.3})
        factors_NC = quotients(part)
        assert 0.699 < factors_NC.min() < 0.72
        assert 1.28 < factors_NC.max() < 1.301
        assert abs(factors_NC.mean() - 1) < 0.04
        alike = np.allclose(factors_NC, factors_NC[:, :1], atol=2e-3)
        assert alike == (key != "channels")
        result_NC = np.stack(results(part, image_CHW)).mean(axis=(2, 3))
        expected_NC = np.broadcast_to(means_C, result_NC.shape) if key == "contrast" else means_C * factors_NC
        np.testing.assert_allclose(result_NC, expected_NC, atol=2e-3)


def test_colour_leaves_missing_pixels_missing_and_others_finite() -> None:
    image_CHW = picture("float32")
    image_CHW[1, 3] = torch.nan
    for each in results(Colour(DATA, channels=0.2), image_CHW, 5):
        assert np.array_equal(np.isnan(each), image_CHW.isnan().numpy())


@pytest.mark.parametrize("dtype", STORED)
def test_channel_dropout_puts_the_mean_in_place_of_whole_channels(dtype: str) -> None:
    image_CHW = picture(dtype)
    mean_C = np.array(MEAN) * TOP[dtype] if dtype in TOP else np.array(MEAN)
    dropped = []
    for each in results(ChannelDropout(DATA, probability=0.3), image_CHW, 300):
        is_kept_C = (each == image_CHW.numpy()).all(axis=(1, 2))
        for channel in np.flatnonzero(~is_kept_C):
            nearest = np.round(mean_C[channel]) if dtype in TOP else np.float32(mean_C[channel])
            assert (each[channel] == nearest).all()
        dropped.append(~is_kept_C)
    assert np.abs(np.mean(dropped, axis=0) - 0.3).max() < 0.08


def test_channel_dropout_spares_one_channel_at_random() -> None:
    image_CHW = picture("uint8")
    kept_NC = np.stack(
        [
            (each == image_CHW.numpy()).all(axis=(1, 2))
            for each in results(ChannelDropout(DATA, probability=1), image_CHW, 100)
        ]
    )
    assert (kept_NC.sum(axis=1) == 1).all()
    assert kept_NC.any(axis=0).all()


# -------------------------------------------------------------------- mistakes

LIST = "[{name: vertical_flip}, {name: noise, std: 0.05}]"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"AUGMENTATION.name": "flip"}, "AUGMENTATION.name 'flip' is unknown: "),
        (
            {"AUGMENTATION": "[{name: vertical_flip}, {name: noise, std: 0}]"},
            "AUGMENTATION.1.std is 0: it must be above",
        ),
        (
            {"AUGMENTATION": "{name: vertical_flip, probability: 2}"},
            "AUGMENTATION.probability is 2: it must be from 0 to",
        ),
        (
            {"AUGMENTATION": "{name: channel_dropout, probability: -1}", "DATA.channels": 3},
            "probability is -1: it must",
        ),
        ({"AUGMENTATION": "{name: channel_dropout}"}, "DATA.channels 1: it needs at least 2 channels"),
        (
            {"AUGMENTATION": "{name: quarter_turns, turns: [4]}"},
            r"AUGMENTATION.turns is \[4\]: a list of numbers from 0",
        ),
        ({"AUGMENTATION": "{name: quarter_turns, turns: []}"}, r"AUGMENTATION.turns is \[\]: a list of numbers from 0"),
        (
            {"AUGMENTATION": "{name: quarter_turns}", "DATA.image_size": [32, 16]},
            r"DATA.image_size \[32, 16\]: 1 and 3 quarter turns would exchange height and width.*turns \[0, 2\]",
        ),
        ({"AUGMENTATION": "{name: colour, brightness: 1.5}"}, "AUGMENTATION.brightness is 1.5: it must be from 0 to 1"),
        ({"AUGMENTATION": "{name: colour, brightness: 0, contrast: 0}"}, "are 0: set one of them above 0, or leave"),
        (
            {"AUGMENTATION": LIST, "AUGMENT.on_device": True},
            "AUGMENTATION.0.name is vertical_flip: it changes crops on",
        ),
        (
            {"AUGMENTATION": LIST, "AUGMENT.crop": "centre", "AUGMENT.flip": 0},
            "AUGMENTATION.0.name is vertical_flip, and ",
        ),
    ],
)
def test_mistake_names_key_value_and_what_is_allowed(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build.load_config("quickstart/mae_digits", overrides)


@pytest.mark.parametrize("recipe", ["quickstart/mae_digits", "finetune/digits", "probe/digits"])
def test_training_images_of_every_task_are_augmented_and_held_out_ones_are_not(recipe: str, tmp_path: Path) -> None:
    statistics = {"DATA.mean": [0.3], "DATA.std": [0.3]}
    plain, augmented = (
        build.load_config(recipe, {**statistics, "AUGMENTATION": parts})
        for parts in ("{name: none}", "[{name: quarter_turns, turns: [1]}, {name: noise}]")
    )
    source, _ = build.build_data(plain)
    keys = [(0, 0), (0, 7)]
    one, other = (build.data.training_data(cfg, source, compare=True).batch(keys) for cfg in (plain, augmented))
    difference = other.images_BCHW.float() - one.images_BCHW.rot90(1, (2, 3)).float()
    assert 0 < difference.abs().mean() < 12  # noise of a tenth of 0.3, in levels of 255
    one, other = (build.data.evaluation_data(cfg, source).batch(keys) for cfg in (plain, augmented))
    assert torch.equal(one.images_BCHW, other.images_BCHW)
