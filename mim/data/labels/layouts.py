"""Layouts: what the numbers and colours of the pixels of masks mean, as LABELS says or three known data sets have it.

Sources of the class lists: Pascal VOC 2012 (development kit), ADE20K (scene parsing challenge, objectInfo150),
Cityscapes (cityscapesScripts, labels.py).
"""

from dataclasses import dataclass

import numpy as np

from mim.data.labels.settings import LabelSettings

IGNORED, FOREIGN = -1, -2  # a pixel without a class; a number or colour that the layout does not have
NUMBERS = 2**16  # that a pixel of a mask can have
VOC = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
CITYSCAPES = {  # the numbers of labelIds; all others have no class
    **{7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light"},
    **{20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car"},
    **{27: "truck", 28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle"},
}
ADE20K_NAMES = (
    "wall,building,sky,floor,tree,ceiling,road,bed,windowpane,grass,cabinet,sidewalk,person,earth,door,table,mountain,"
    "plant,curtain,chair,car,water,painting,sofa,shelf,house,sea,mirror,rug,field,armchair,seat,fence,desk,rock,"
    "wardrobe,lamp,bathtub,railing,cushion,base,box,column,signboard,chest of drawers,counter,sand,sink,skyscraper,"
    "fireplace,refrigerator,grandstand,path,stairs,runway,case,pool table,pillow,screen door,stairway,river,bridge,"
    "bookcase,blind,coffee table,toilet,flower,book,hill,bench,countertop,stove,palm,kitchen island,computer,"
    "swivel chair,boat,bar,arcade machine,hovel,bus,towel,light,truck,tower,chandelier,awning,streetlight,booth,"
    "television receiver,airplane,dirt track,apparel,pole,land,bannister,escalator,ottoman,bottle,buffet,poster,stage,"
    "van,ship,fountain,conveyer belt,canopy,washer,plaything,swimming pool,stool,barrel,basket,waterfall,tent,bag,"
    "minibike,cradle,oven,ball,food,step,tank,trade name,microwave,pot,animal,bicycle,lake,dishwasher,screen,blanket,"
    "sculpture,hood,sconce,vase,traffic light,tray,ashcan,fan,pier,crt screen,plate,monitor,bulletin board,shower,"
    "radiator,glass,clock,flag"
)
ADE20K = tuple(ADE20K_NAMES.split(","))
SUFFIXES = {"cityscapes": ("_leftImg8bit", "_gtFine_labelIds")}  # of images and of masks
TRAIN_IDS = "trainids"  # Cityscapes' masks whose numbers are those of the 19 classes


@dataclass(frozen=True, slots=True, eq=False)
class MaskLayout:
    """The classes of masks, and which class a pixel has: -1 none, -2 a pixel that the layout does not have."""

    names: tuple[str, ...]
    class_of_number: np.ndarray  # (NUMBERS,) int64
    colours: np.ndarray  # (colours,) int64: 65536 red + 256 green + blue, sorted; empty where colours mean nothing
    class_of_colour: np.ndarray  # (colours,) int64
    prefers_colours: bool  # whether a picture with a palette counts by its colours


def mask_layout(settings: LabelSettings) -> MaskLayout:
    """The layout that LABELS names."""
    if settings.layout == "colours":
        classes = [*range(len(settings.names)), IGNORED][: len(settings.palette)]
        return _layout(settings.names, {}, dict(zip(settings.palette, classes, strict=True)), prefers_colours=True)
    if settings.layout == "voc":
        numbers = {number: number for number in range(len(VOC))} | {255: IGNORED}
        return _layout(VOC, numbers, {voc_colour(number): label for number, label in numbers.items()})
    if settings.layout == "ade20k":
        return _layout(ADE20K, {0: IGNORED} | {number: number - 1 for number in range(1, len(ADE20K) + 1)})
    if settings.layout == "cityscapes":
        names = tuple(CITYSCAPES.values())
        numbers = dict.fromkeys(range(256), IGNORED)
        own = range(len(names)) if TRAIN_IDS in settings.mask_suffix.lower() else list(CITYSCAPES)
        return _layout(names, numbers | {number: label for label, number in enumerate(own)})
    first = 1 if settings.reduce_zero else 0
    numbers = {} if settings.ignore < 0 else {settings.ignore: IGNORED}
    numbers |= {0: IGNORED} if settings.reduce_zero else {}
    own_numbers = settings.values or range(first, first + len(settings.names))
    return _layout(settings.names, numbers | {number: label for label, number in enumerate(own_numbers)})


def voc_colour(number: int) -> tuple[int, int, int]:
    """The colour of a class in VOC's palette: bit i of each third bit of the number is bit 7 - i of a colour."""
    levels = [sum((number >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)]
    return levels[0], levels[1], levels[2]


def packed(rgb: np.ndarray) -> np.ndarray:
    """One number for each colour (..., 3)."""
    red, green, blue = np.moveaxis(rgb.astype(np.int64), -1, 0)
    return (red << 16) + (green << 8) + blue


def _layout(
    names: tuple[str, ...],
    numbers: dict[int, int],
    colours: dict[tuple[int, int, int], int] | None = None,
    prefers_colours: bool = False,
) -> MaskLayout:
    class_of_number = np.full(NUMBERS, FOREIGN, np.int64)
    class_of_number[list(numbers)] = list(numbers.values())
    keys = packed(np.array(list(colours or {}), np.int64).reshape(-1, 3))
    order = keys.argsort()
    labels = np.array(list((colours or {}).values()), np.int64)
    return MaskLayout(names, class_of_number, keys[order], labels[order], prefers_colours)
