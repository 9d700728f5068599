"""The machine, the versions and the config of a benchmark: what is needed to name and to repeat it."""

import platform
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from mim.lab.dryrun.records import hardware_of

PACKAGES = ("torch", "torchvision", "timm", "transformers", "numpy", "pillow")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """device: its name; threads: of PyTorch on a CPU, else None; memory: bytes of a GPU; versions: by package."""

    device: str
    threads: int | None
    memory: int | None
    versions: dict[str, str]
    system: str

    @classmethod
    def here(cls, device: torch.device) -> "Machine":
        """This one."""
        found = hardware_of(device)
        versions = {"python": platform.python_version()}
        for package in PACKAGES:
            try:
                versions[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                continue
        if device.type == "cuda":
            versions["cuda"] = str(torch.version.cuda)
        return cls(
            device=found["device"],
            threads=found.get("threads"),
            memory=torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None,
            versions=versions,
            system=platform.platform(),
        )

    @property
    def told(self) -> str:
        """All of it, in words."""
        versions = ", ".join(f"{package} {version}" for package, version in self.versions.items())
        return f"{self}; {versions}; {self.system}"

    def __str__(self) -> str:
        return self.device if self.threads is None else f"{self.device}, threads: {self.threads}"

    @property
    def slug(self) -> str:
        """Of letters, digits and hyphens, for the name of a file."""
        words = re.sub(r"\((r|tm|c)\)|@.*", " ", self.device.lower())
        words = re.sub(r"\b(processor|cpu)\b", " ", words) if self.threads is not None else words
        threads = [] if self.threads is None else [f"{self.threads}-threads"]
        return "-".join([*re.findall(r"[a-z0-9]+", words), *threads])


def theme_of(config: Path) -> str:
    """What names a config in the name of a file: with its folder below configs/, as in mae_vit_base."""
    file = config.resolve()
    return f"{file.parent.name}_{file.stem}" if file.parent.parent.name == "configs" else file.stem
