"""Machine: the hardware and the versions of a benchmark, for its file name and to repeat it."""

import platform
import re
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from mim.config.recipes import find_file
from mim.lab.dryrun.records import hardware_of

PACKAGES = ("torch", "torchvision", "timm", "transformers", "numpy", "pillow")


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a benchmark was run."""

    device: str  # name of the CPU or GPU
    threads: int | None  # of PyTorch; None on a GPU
    versions: dict[str, str]  # by package
    system: str  # the operating system

    @classmethod
    def here(cls, device: torch.device) -> "Machine":
        """This machine."""
        hardware = hardware_of(device)
        versions = {"python": platform.python_version()}
        for package in PACKAGES:
            with suppress(metadata.PackageNotFoundError):
                versions[package] = metadata.version(package)
        if device.type == "cuda":
            versions["cuda"] = str(torch.version.cuda)
        return cls(hardware["device"], hardware.get("threads"), versions, system=platform.platform())

    def describe(self) -> str:
        """Hardware, versions and system, in one line."""
        versions = ", ".join(f"{package} {version}" for package, version in self.versions.items())
        return f"{self}; {versions}; {self.system}"

    def __str__(self) -> str:
        return self.device if self.threads is None else f"{self.device}, threads: {self.threads}"

    @property
    def slug(self) -> str:
        """The hardware as part of a file name: small letters, digits and hyphens."""
        words = re.sub(r"\((r|tm|c)\)|@.*", " ", self.device.lower())
        words = re.sub(r"\b(processor|cpu)\b", " ", words) if self.threads is not None else words
        threads = [] if self.threads is None else [f"{self.threads}-threads"]
        return "-".join([*re.findall(r"[a-z0-9]+", words), *threads])


def theme_of(config: str | Path) -> str:
    """The config as part of a file name, with its folder below configs/: mae_vit_base."""
    file = find_file(config).resolve()
    return f"{file.parent.name}_{file.stem}" if file.parent.parent.name == "configs" else file.stem
