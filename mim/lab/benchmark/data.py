"""The loader of a config alone, held against torchvision's published pipeline."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median

import torch

from mim.config.load import load_config
from mim.lab.benchmark.contenders import own_images
from mim.lab.benchmark.loading import Loading, measure_loading
from mim.lab.benchmark.machine import Machine, theme_of
from mim.lab.dryrun.task import dry_task


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadingOutcome:
    """What was found. crops: those of ours, in words; images: of the data set; files: that torchvision read."""

    theme: str
    machine: Machine
    date: datetime
    source: str
    crops: str
    images: int
    files: Path
    loading: Loading

    @property
    def sides(self) -> dict[str, tuple[float, ...]]:
        """Images a second on one core, by side and round."""
        return {"ours": self.loading.ours, "torchvision": self.loading.published}

    @property
    def ratio(self) -> float:
        """The quotient of the medians."""
        return median(self.loading.ours) / median(self.loading.published)


def benchmark_loading(config: Path, overrides: Sequence[str], files: Path | None, rounds: int) -> LoadingOutcome:
    """Measures how fast the training images of a config are read, decoded, cropped and put together on one core.

    files: class folders for torchvision; None for those of the config. Raises ValueError for what the user can mend.
    """
    cfg = load_config(config, overrides)
    images = own_images(dry_task(cfg), "--data")
    if files is None:
        if not cfg.DATA.path or not Path(cfg.DATA.path).is_dir():
            raise ValueError(
                f"--data: DATA.path {cfg.DATA.path!r} is no folder that torchvision reads: give --files DIR"
            )
        files = Path(cfg.DATA.path)
        files = files / "train" if (files / "train").is_dir() else files
    size, crop = tuple(cfg.DATA.image_size), cfg.AUGMENT
    shown = f"{size[0]} x {size[1]}, {crop.crop_scale[0]:g} to {crop.crop_scale[1]:g} of the area, {crop.interpolation}"
    return LoadingOutcome(
        theme=f"{theme_of(config)}_loader",
        machine=Machine.here(torch.device("cpu")),
        date=datetime.now(),
        source=cfg.DATA.name,
        crops=shown + (f"; {images.repeats} of each image" if images.repeats > 1 else ""),
        images=len(images),
        files=files,
        loading=measure_loading(images, files, size, rounds=rounds),
    )
