"""Data: where images come from, and how they get to the device. A new source is a file here, or a class of your own."""

from mim.data.sources.base import DataSettings, Source
from mim.data.sources.cifar10 import CIFAR10
from mim.data.sources.digits import Digits
from mim.data.sources.folder import Folder
from mim.data.sources.huggingface import HuggingFace
from mim.data.sources.packed import Packed
from mim.data.sources.webdataset import WebDataset
from mim.errors import DataLost

__all__ = ["CIFAR10", "DataLost", "DataSettings", "Digits", "Folder", "HuggingFace", "Packed", "Source", "WebDataset"]
