"""CIFAR10: the data set as torchvision stores it, downloaded where that is possible."""

import numpy as np
from PIL import Image
from torchvision.datasets import CIFAR10 as TorchvisionCIFAR10

from mim.data.decoding.pictures import check_channels, to_mode
from mim.data.settings import DataSettings
from mim.data.sources.base import Source, Split


class CIFAR10(Source, name="cifar10"):
    """50,000 training images of 32 x 32 pixels, 10,000 held out. DATA.path is the folder of `cifar-10-batches-py`.

    Raises ValueError where the files are missing and cannot be downloaded.
    """

    def __init__(self, split: Split, settings: DataSettings):
        super().__init__(split, settings)
        check_channels(settings.channels)
        root = settings.path or "data"
        try:
            data = TorchvisionCIFAR10(root, train=split == "train", download=False)
        except RuntimeError:
            try:
                data = TorchvisionCIFAR10(root, train=split == "train", download=True)
            except (OSError, RuntimeError) as error:
                raise ValueError(
                    f"DATA.path {root}: CIFAR-10 is not there and cannot be downloaded ({error}). Unpack "
                    "cifar-10-python.tar.gz into it, or use DATA.name folder with a folder of images"
                ) from error
        self.images_BHWC, self.labels = data.data, np.asarray(data.targets, dtype=np.int64)
        self.classes = tuple(data.classes)

    def __len__(self) -> int:
        return len(self.images_BHWC)

    def read(self, index: int) -> Image.Image:
        notes: list[str] = []
        image = to_mode(Image.fromarray(self.images_BHWC[index]), self.settings.channels, notes)
        self.say(notes, "CIFAR-10")
        return image
