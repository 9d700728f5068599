"""Packages that a bare machine may lack: which are missing, and their installation from a folder of wheels."""

import importlib.util
import subprocess
import sys
from pathlib import Path

NEEDED = {  # module: package; what every step imports
    "torch": "torch",
    "torchvision": "torchvision",
    "timm": "timm",
    "huggingface_hub": "huggingface_hub",
    "einops": "einops",
    "numpy": "numpy",
    "PIL": "pillow",
    "simplejpeg": "simplejpeg",
    "yaml": "pyyaml",
    "yacs": "yacs",
    "safetensors": "safetensors",
    "rich": "rich",
    "matplotlib": "matplotlib",
    "sklearn": "scikit-learn",
    "scipy": "scipy",
    "jinja2": "jinja2",
}
USEFUL = {"transformers": "transformers", "pytest": "pytest"}  # what some steps import
UNUSED = {"tensorboard": "tensorboard", "vl_convert": "vl-convert-python"}  # of setup.py, and of no step here


def missing_packages() -> list[str]:
    """The packages that this interpreter does not find."""
    importlib.invalidate_caches()
    return [name for module, name in (NEEDED | USEFUL).items() if importlib.util.find_spec(module) is None]


def packages_line() -> tuple[str, bool]:
    """A line that says which packages are missing and what to do, and whether any step can run."""
    missing, version = missing_packages(), f"{sys.version_info.major}.{sys.version_info.minor}"
    if not missing:
        return f"packages: all {len(NEEDED | USEFUL)} are here, Python {version}", True
    ready = not set(missing) & set(NEEDED.values())
    names = " ".join(missing)
    return (
        f"missing packages: {', '.join(missing)}; {'steps with them are skipped' if ready else 'nothing can run'}. "
        f"Where there is a network: pip download --no-deps --only-binary=:all: --python-version {version} -d wheels "
        f"{names}; then give that folder: WHEELS=wheels benchmarks/first_contact.sh ...",
        ready,
    )


def install_wheels(wheels: Path, site: Path) -> str:
    """Installs a folder of wheels into the folder `site`, without a network. Returns what went wrong, else nothing."""
    files = sorted(wheels.glob("*.whl"))
    if not files:
        return f"--wheels {wheels}: no .whl file is there"
    words = ["pip", "--disable-pip-version-check", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    process = subprocess.run(
        [sys.executable, "-m", *words, "--target", site, *files], capture_output=True, text=True, check=False
    )
    sys.path.insert(0, str(site))
    return "" if process.returncode == 0 else f"--wheels {wheels}: {(process.stderr or process.stdout).strip()}"
