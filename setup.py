"""Packaging of mim-toolkit. Tool settings are in pyproject.toml.

Each lower bound of what the program and its tests need stands in tests/oldest.txt too: `make test-oldest` installs just
those, `make test-newest` the newest below the upper bounds.
"""

from pathlib import Path

from setuptools import find_packages, setup

COMMANDS = (  # of tools/mim_toolkit; tests/tools/test_cli.py compares the two
    *("train", "plan", "masks", "reconstruct", "evaluate", "compare", "watch"),
    *("sweep", "convert", "export", "backbones", "pack", "benchmark", "quickstart"),
)
HUGGINGFACE = ["datasets>=3.0"]
CORRUPTIONS = ["imagecorruptions-imaug>=1.1.5", "scikit-image>=0.24,<1"]  # it reads scikit-image's minor version alone
TIFF = ["tifffile>=2024.8.28", "imagecodecs>=2024.6.1"]
HDF5, ZARR, LMDB, DICOM = ["h5py>=3.12.1"], ["zarr>=3.1.0"], ["lmdb>=1.6.2"], ["pydicom>=3.0.1"]
NIFTI = ["nibabel>=5.3.0"]
GEOTIFF, PARQUET, VIDEO = ["rasterio>=1.4.1"], ["pyarrow>=17.0.0"], ["av>=14.0.0"]
REMOTE, S3, GS = ["fsspec[http]>=2024.6.1"], ["s3fs>=2024.6.1"], ["gcsfs>=2024.6.1"]
S3_SERVER = ["moto[s3]>=5.0.20", "flask>=3.0", "flask-cors>=4.0.1"]  # a real server, in a process of its own
WANDB, MLFLOW, TRACKIO = ["wandb>=0.27"], ["mlflow>=3.1"], ["trackio>=0.30"]
RETRIEVAL = ["faiss-cpu>=1.9"]
SCHEDULEFREE = ["schedulefree>=1.4.1"]
EXPORT = ["onnx>=1.19", "onnxscript>=0.6", "onnxruntime>=1.23"]
DOCS = [
    "mkdocs-material>=9.6",
    "mkdocstrings[python]>=0.29",
    "mkdocs-jupyter>=0.25",
    "ipykernel>=6.29",
]
TEST = [
    *HUGGINGFACE,
    *SCHEDULEFREE,
    *TIFF,
    *HDF5,
    *ZARR,
    *LMDB,
    *DICOM,
    *NIFTI,
    *GEOTIFF,
    *PARQUET,
    *VIDEO,
    *REMOTE,
    *S3,
    *S3_SERVER,
    "pytest>=9.1",
    "pytest-xdist>=3.6.1",
    "hypothesis>=6.100",
    "torchmetrics>=1.8",
    "transformers>=5.12",
]
DEV = [
    *TEST,
    *DOCS,
    *CORRUPTIONS,
    *RETRIEVAL,
    *EXPORT,
    "ruff>=0.15",
    "mypy>=1.18",
    "types-PyYAML",
    "pre-commit>=4",
    "playwright>=1.50",
]

setup(
    name="mim-toolkit",
    version="0.2.0.dev0",
    description="Masked image modeling: MAE, SimMIM and every cross of the two, through one engine",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    classifiers=[  # the versions of Python under which the tests of `make test-oldest` or `make test-newest` were run
        "Operating System :: POSIX :: Linux",  # others: README.md
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.13",
    ],
    packages=[*find_packages(include=["mim", "mim.*"]), "mim.configs", "mim_toolkit"],
    # mim/config/recipes.py finds the recipes in the clone and in the package
    package_dir={"mim.configs": "configs", "mim_toolkit": "tools/mim_toolkit"},
    package_data={
        "mim.lab.comparison": ["views/templates/*"],
        "mim.lab.watch": ["templates/*"],
        "mim.lab.card": ["templates/*"],
        "mim.results": ["templates/*"],
        "mim.configs": ["**/*.yaml"],
    },
    entry_points={"console_scripts": [f"mim-{name} = mim_toolkit:script" for name in COMMANDS]},
    python_requires=">=3.11,<3.14",
    install_requires=[
        "torch>=2.11,<3",
        "torchvision>=0.26,<1",
        "timm>=1.0.23,<2",
        "huggingface_hub>=1.5,<3",
        "einops>=0.8",
        "numpy>=2.0",
        "pillow>=11.0",
        "simplejpeg>=1.9",
        "pyyaml>=6.0.1",
        "yacs>=0.1.8",
        "safetensors>=0.5",
        "tensorboard>=2.19",
        "rich>=14.0",
        "matplotlib>=3.10",
        "scikit-learn>=1.6",
        "scipy>=1.15",
        "jinja2>=3.1.2",
        "vl-convert-python>=1.9",
    ],
    extras_require={
        "huggingface": HUGGINGFACE,
        "retrieval": RETRIEVAL,
        "wandb": WANDB,
        "mlflow": MLFLOW,
        "trackio": TRACKIO,
        "schedulefree": SCHEDULEFREE,
        "tiff": TIFF,
        "hdf5": HDF5,
        "zarr": ZARR,
        "lmdb": LMDB,
        "dicom": DICOM,
        "nifti": NIFTI,
        "geotiff": GEOTIFF,
        "parquet": PARQUET,
        "video": VIDEO,
        "remote": REMOTE,
        "s3": [*REMOTE, *S3],
        "gs": [*REMOTE, *GS],
        "corruptions": CORRUPTIONS,
        "export": EXPORT,
        "examples": ["elpv-dataset>=1.0"],  # images of examples/solar, under CC BY-NC-SA 4.0
        "docs": DOCS,
        "test": TEST,
        "dev": DEV,
        "ci": [*DEV, *WANDB, *MLFLOW, *TRACKIO],  # trackers bring much along: their tests are skipped without them
    },
)
