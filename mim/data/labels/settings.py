"""The settings of LABELS: where labels come from, what they are, and which images train. No torch here."""

from dataclasses import dataclass
from typing import Literal

from mim.io.checks import at_least, shares

Kind = Literal["auto", "class", "classes", "number", "mask"]
Layout = Literal["index", "voc", "ade20k", "cityscapes", "colours"]


@dataclass(frozen=True, kw_only=True)
class LabelSettings:
    """LABELS: what the labels are, where they come from, and the labelled images to train on.

    Without `file` and `masks` they come from the data set itself: its folders, its list, its columns.

    Args:
        file: a table of labels: .csv, .tsv or .parquet, with a row for each image; empty for none.
        path_column: the column of `file` that names the image: by a path relative to the folder of `file` or to
            DATA.path, by an absolute path, or by a file name, with its ending or without, that no other image has.
        columns: the columns of `file` with labels, one or several; empty takes the only column that is left.
        kind: `class`, one for each image; `classes`, several at once; `number`, one or several; `mask`, a class for
            each pixel. `auto` decides by the values and says what it decided; labels of the data set itself are then
            classes.
        separator: what stands between the classes of an image in one column, under kind `classes`.
        bins: rising numbers that cut a column of numbers into classes: `[0.5]` gives `<0.5` and `>=0.5`.
        delimiter: what stands between the columns of a text file; `auto` is a tab in .tsv, and in another file the one
            of comma, semicolon and tab that divides the first line.
        header: names of the columns, for a text file that has none in its first line; empty where it has.
        encoding: of a text file, as Python names it, such as utf-8, cp1252 or latin-1.
        unlabelled: what an image without a label is: an `error`, or left out (`skip`).
        absent: what a row without an image is: an `error`, or left out (`skip`).
        split_column: a column of `file` with `train` or `val` for each image; `test` is left out. Empty for none.
        group: a column of `file`. All images with the same value are held out together, or not at all.
        folds: number of parts of all images, of which one is held out; 0 keeps the split of the data set.
        fold: the part that is held out, from 0 to below folds.
        masks: a folder of masks, pictures with a class for each pixel, that have the names of their images; empty for
            none.
        mask_suffix: what the name of a mask has behind the name of its image, such as `_mask`.
        image_suffix: what the name of an image has behind the name that the two share, such as `_leftImg8bit`.
        layout: what the pixels of masks are. `index`: the number of a class; `colours`: those of `palette`; `voc`,
            `ade20k` and `cityscapes` as those data sets store them, with their classes.
        names: the classes of masks, in the order of their numbers or colours.
        values: the number of each class in masks with the layout `index`, as in `[0, 255]`; empty for 0, 1, 2, ...
        ignore: the number of pixels without a class, with the layout `index`; -1 for none.
        reduce_zero: with the layout `index`, pixels of number 0 have no class, and 1 is the first class.
        palette: red, green and blue of each class, with the layout `colours`. One colour more is that of pixels
            without a class.
        share: share of the training set, above 0 and at most 1: of classes, the same number of images from each; of
            other kinds, whole groups where there are any.
        per_class: images of each class; 0 means that share or count decides.
        count: number of labelled training images in all, of classes as equally as possible; 0 for no such choice. The
            images of a smaller count are among those of a larger one with the same seed.
        balance: draw images so that each class is equally frequent in an epoch, with repetitions.
        seed: of the choice of images and of folds. It is apart from SEED, so that runs of several seeds can use the
            same images.
    """

    file: str = ""
    path_column: str = "path"
    columns: tuple[str, ...] = ()
    kind: Kind = "auto"
    separator: str = "|"
    bins: tuple[float, ...] = ()
    delimiter: Literal["auto", "comma", "semicolon", "tab", "space"] = "auto"
    header: tuple[str, ...] = ()
    encoding: str = "utf-8"
    unlabelled: Literal["error", "skip"] = "error"
    absent: Literal["error", "skip"] = "error"
    split_column: str = ""
    group: str = ""
    folds: int = 0
    fold: int = 0
    masks: str = ""
    mask_suffix: str = ""
    image_suffix: str = ""
    layout: Layout = "index"
    names: tuple[str, ...] = ()
    values: tuple[int, ...] = ()
    ignore: int = 255
    reduce_zero: bool = False
    palette: tuple[tuple[int, int, int], ...] = ()
    share: float = 1.0
    per_class: int = 0
    count: int = 0
    balance: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        at_least("LABELS", 0, per_class=self.per_class, count=self.count, seed=self.seed, fold=self.fold)
        shares("LABELS", share=self.share)
        choices = {"share": self.share if self.share != 1 else 0, "per_class": self.per_class, "count": self.count}
        texts = [f"LABELS.{key} {value:g}" for key, value in choices.items() if value]
        if len(texts) > 1:
            raise ValueError(f"{' and '.join(texts)}: give one of them, and leave share 1, per_class 0 and count 0")
        self._check_kind()
        self._check_split()
        self._check_masks()

    def _check_kind(self) -> None:
        if self.bins and list(self.bins) != sorted(set(self.bins)):
            raise ValueError(f"LABELS.bins is {list(self.bins)}: the numbers must rise")
        if self.bins and self.kind not in ("auto", "class"):
            raise ValueError(f"LABELS.bins cuts numbers into classes, and LABELS.kind is {self.kind}: set it to class")
        if self.bins and len(self.columns) > 1:
            raise ValueError(f"LABELS.bins cuts one column of numbers, and LABELS.columns names {len(self.columns)}")
        if (self.kind == "mask") > bool(self.masks):
            raise ValueError("LABELS.kind is mask: name the folder of the masks with LABELS.masks")
        if self.masks and self.kind not in ("auto", "mask"):
            raise ValueError(
                f"LABELS.masks names masks, and LABELS.kind is {self.kind}: set it to mask, or masks to ''"
            )
        if self.masks and (self.columns or self.bins):
            raise ValueError("LABELS.masks and LABELS.columns or bins: labels come from one of them")
        classes_alone = {"LABELS.per_class": bool(self.per_class), "LABELS.balance": self.balance}
        kind = "mask" if self.masks else self.kind
        for key, is_set in classes_alone.items():
            if is_set and kind not in ("auto", "class"):
                raise ValueError(f"{key} is for labels of kind class, and these are of kind {kind}: turn it off")

    def _check_split(self) -> None:
        of_the_table = {"columns": self.columns, "split_column": self.split_column, "group": self.group}
        for key, value in {} if self.file else of_the_table.items():
            if value:
                raise ValueError(f"LABELS.{key} names columns of a table: name it with LABELS.file")
        if self.folds == 1 or self.folds < 0:
            raise ValueError(f"LABELS.folds is {self.folds}: at least 2, or 0 for the split of the data set")
        if self.fold and self.fold >= self.folds:
            raise ValueError(f"LABELS.fold is {self.fold} and LABELS.folds {self.folds}: folds are numbered from 0")
        if self.folds and self.split_column:
            raise ValueError(f"LABELS.folds {self.folds} and LABELS.split_column {self.split_column}: give one of them")

    def _check_masks(self) -> None:
        if self.masks and self.layout in ("index", "colours") and not self.names:
            raise ValueError(
                f"LABELS.names is empty: with the layout {self.layout}, name the classes in the order of their "
                f"{'numbers' if self.layout == 'index' else 'colours'}"
            )
        if self.masks and self.layout not in ("index", "colours") and self.names:
            raise ValueError(
                f"LABELS.names has no effect: the layout {self.layout} has its own classes; leave it empty"
            )
        if self.values and len(self.values) != len(self.names):
            raise ValueError(f"LABELS.values has {len(self.values)} numbers and LABELS.names {len(self.names)} classes")
        if self.layout == "colours" and len(self.palette) not in (len(self.names), len(self.names) + 1):
            raise ValueError(
                f"LABELS.palette has {len(self.palette)} colours and LABELS.names {len(self.names)} classes: give each "
                "class a colour, and perhaps one colour more for pixels without a class"
            )
        for colour in self.palette:
            if not all(0 <= level <= 255 for level in colour):
                raise ValueError(f"LABELS.palette has {list(colour)}: red, green and blue are from 0 to 255")
