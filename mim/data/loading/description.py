"""What becomes of training images, in words: for the start of a run, and for benchmarks."""

from mim.data.loading.dataset import ImageDataset
from mim.data.settings import AugmentSettings
from mim.data.sources.base import size_of
from mim.data.transforms import CentreCrop, RandomCropFlip

OF_IMAGES = ("flip", "randaugment", "jitter")  # keys of AUGMENT after the crop, in their order; 0 or empty for none
OF_BATCHES = ("erase", "mixup", "cutmix")


def describe_training(data: ImageDataset) -> str:
    """As in `300 x 300 (the first) -> 128 x 128, 0.4 to 1 of the area, bicubic; flip 0.5, vertical_flip 0.5`."""
    first, transform = data.first(), data.transform
    stored = "" if first is None else "{} x {} (the first) -> ".format(*size_of(first))
    if isinstance(transform, CentreCrop):
        height, width = transform.size
        return f"{stored}{height} x {width}, the middle {transform.share:.4g} of the sides; the same in each epoch"
    if not isinstance(transform, RandomCropFlip):
        return f"{stored}{type(transform).__name__}"
    steps = [
        *_values(transform.settings, OF_IMAGES),
        *(part.title for part in transform.augmentations.parts),
        *_values(transform.settings, OF_BATCHES),
    ]
    where = ", on the device" if transform.settings.on_device else ""
    return f"{stored}{crops_text(transform.size, transform.settings)}{where}; {', '.join(steps) or 'nothing else'}"


def describe_files(train: ImageDataset, held_out: ImageDataset) -> dict[str, str]:
    """What files the folders of a data set hold, as a line of the start; none for other data sets."""
    texts = dict.fromkeys(text for data in (train, held_out) if (text := data.source.contents))
    return {"files": "; held out: ".join(texts)} if texts else {}


def crops_text(size: tuple[int, int], augment: AugmentSettings) -> str:
    """What a random crop is."""
    taken = f"{augment.crop_scale[0]:g} to {augment.crop_scale[1]:g} of the area"
    if augment.crop == "simple":
        taken = f"of the whole image with a border of {augment.padding} pixels"
    return f"{size[0]} x {size[1]}, {taken}, {augment.interpolation}"


def _values(settings: AugmentSettings, keys: tuple[str, ...]) -> list[str]:
    """Those of some keys that change images, each with its value."""
    values = {key: getattr(settings, key, 0) for key in keys}  # pretraining and probes have the first alone
    return [f"{key} {value if isinstance(value, str) else f'{value:g}'}" for key, value in values.items() if value]
