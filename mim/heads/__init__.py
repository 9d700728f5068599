"""Heads predict the target from an encoder's features. A new head is a file here, or a class in your own package."""

from mim.heads.base import Head
from mim.heads.convolution import Convolution
from mim.heads.cross_attention import CrossAttention
from mim.heads.mlp import MLP
from mim.heads.pixel_shuffle import PixelShuffle
from mim.heads.transformer import Transformer
from mim.heads.unet import UNet

__all__ = ["MLP", "Convolution", "CrossAttention", "Head", "PixelShuffle", "Transformer", "UNet"]
