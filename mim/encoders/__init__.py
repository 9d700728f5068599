"""Encoders turn a partly hidden image into features. A new encoder is a file here, or a class in your own package."""

from mim.encoders.base import Encoder
from mim.encoders.beit import Beit
from mim.encoders.swin import Swin
from mim.encoders.swin_v2 import SwinV2
from mim.encoders.timm_model import Timm
from mim.encoders.vit import ViT

__all__ = ["Beit", "Encoder", "Swin", "SwinV2", "Timm", "ViT"]
