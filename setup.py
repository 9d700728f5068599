"""Packaging of mim-toolkit. Tool settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="mim-toolkit",
    version="0.1.0",
    description="Masked image modeling: MAE, SimMIM and every cross of the two, through one engine",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["mim", "mim.*"]),
    python_requires=">=3.11",
    install_requires=[
        "torch>=2.11",
        "torchvision>=0.26",
        "timm>=1.0.23",
        "einops>=0.8",
        "numpy>=2.0",
        "pillow>=11.0",
        "simplejpeg>=1.9",
        "pyyaml>=6.0",
        "yacs>=0.1.8",
        "safetensors>=0.5",
        "tensorboard>=2.19",
        "rich>=14.0",
        "matplotlib>=3.10",
        "scikit-learn>=1.6",
        "scipy>=1.15",
        "jinja2>=3.1",
    ],
    package_data={"mim.reporting": ["templates/*"]},
    extras_require={
        "huggingface": ["datasets>=3.0"],
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.15",
            "mypy>=1.18",
            "types-PyYAML",
            "transformers>=5.0",
            "datasets>=3.0",
            "pre-commit>=4",
            "playwright>=1.50",
        ],
    },
)
