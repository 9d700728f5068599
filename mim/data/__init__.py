"""Data: where images come from, and how they get to the device. A new source is a file here, or a class of your own."""

from mim.data.base import DataLost, DataSettings, Source
from mim.data.cifar10 import CIFAR10
from mim.data.digits import Digits
from mim.data.folder import Folder
from mim.data.huggingface import HuggingFace
from mim.data.packed import Packed
from mim.data.webdataset import WebDataset

__all__ = ["CIFAR10", "DataLost", "DataSettings", "Digits", "Folder", "HuggingFace", "Packed", "Source", "WebDataset"]
