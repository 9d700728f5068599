"""BuiltTask: what pretraining, fine-tuning and linear probing have in common."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from torch import nn

from mim.cost.model_summary import ModelSummary
from mim.data.loading.dataset import ImageDataset
from mim.data.loading.description import describe_files, describe_training
from mim.data.preprocess import Preprocess
from mim.encoders.base import Encoder
from mim.engine.distributed.world import World
from mim.evaluation.reading import Reader


class EncoderModel(Protocol):
    """A model around an encoder."""

    encoder: Encoder

    def blocks(self) -> list[nn.Module]: ...


Model = TypeVar("Model", bound=EncoderModel)


@dataclass(eq=False, kw_only=True)
class BuiltTask(Generic[Model]):
    """A model with the images that it is trained and judged on; mim.engine.protocol.Task explains the methods."""

    model: Model
    preprocess: Preprocess
    train_data: ImageDataset  # training images under their augmentation
    held_out: ImageDataset  # held-out images under the evaluation transform; may be empty
    model_summary: ModelSummary
    reader: Reader  # of the images of evaluations

    def __post_init__(self) -> None:
        self.fixed: list[nn.Module] = [self.preprocess]

    @property
    def prepares(self) -> bool:
        return False

    def blocks(self) -> list[nn.Module]:
        return self.model.blocks()

    def shards(self) -> list[nn.Module]:
        return self.blocks()

    def lr_scales(self, layer_decay: float) -> dict[str, float]:
        return {f"encoder.{name}": lr_scale for name, lr_scale in self.model.encoder.lr_scales(layer_decay).items()}

    def weight_decays(self) -> dict[str, float]:
        return {}

    def metadata(self) -> dict[str, Any]:
        return {}

    def before_first_step(self, model: Any, world: World, folder: Path) -> None:
        pass

    def after_step(self, progress: float) -> None:
        pass

    def warnings(self, results: dict[str, Any]) -> list[str]:
        return []

    def image_lines(self, train: str) -> dict[str, str]:
        """The number of images and their shape, and what becomes of those for training. train: as in `80 to train`."""
        image = self.model.encoder.image
        return {
            "images": f"{train}, {len(self.held_out):,} held out; {image.channels} x {image.height} x {image.width}",
            **describe_files(self.train_data, self.held_out),
            "training images": describe_training(self.train_data),
        }
