"""Building: from a config to its model, its images and its task."""

from mim.build.configs import check, load_config
from mim.build.data import (
    build_data,
    build_sources,
    check_classes,
    evaluation_crop,
    evaluation_data,
    with_statistics,
)
from mim.build.models import (
    Model,
    assumed_labels,
    build_model,
    build_predictor,
    build_without_memory,
    image_spec,
    probe_settings,
    ready,
)
from mim.build.tasks import build_task, chosen_labels, engine_settings

__all__ = [
    "Model",
    "assumed_labels",
    "build_data",
    "build_model",
    "build_predictor",
    "build_sources",
    "build_task",
    "build_without_memory",
    "check",
    "check_classes",
    "chosen_labels",
    "engine_settings",
    "evaluation_crop",
    "evaluation_data",
    "image_spec",
    "load_config",
    "probe_settings",
    "ready",
    "with_statistics",
]
