"""Encoders turn an image, part of it hidden, into features. A new encoder is a file here, or a class of your own."""

from mim.encoders.base import Encoder
from mim.encoders.beit import Beit
from mim.encoders.swin import Swin
from mim.encoders.swin_v2 import SwinV2
from mim.encoders.vit import ViT

__all__ = ["Beit", "Encoder", "Swin", "SwinV2", "ViT"]
