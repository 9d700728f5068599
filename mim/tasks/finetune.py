"""Finetune: one step predicts the labels of augmented images, the encoder trained with its readout."""

from dataclasses import dataclass

from torch import Tensor, nn

from mim.data.augment import BatchAugment
from mim.data.batch import Batch
from mim.engine.protocol import StepContext
from mim.ops.seeding import derive_seed
from mim.tasks.supervised import Supervised


@dataclass(eq=False, kw_only=True)
class Finetune(Supervised):
    """Fine-tuning of a pretrained encoder, or training from scratch, of all blocks or the last ones. See Supervised."""

    name = "finetune"

    augment: BatchAugment  # erases and mixes the images of a batch on the device

    def loss(self, model: nn.Module, batch: Batch, context: StepContext) -> Tensor:
        """The criterion, in fp32. Erasing and mixing depend on the seed, the step and the row in the global batch."""
        seed = derive_seed(context.seed, "mix", context.step, context.start)
        img_BCHW = self.preprocess(batch.images_BCHW, batch.crops_B5)
        img_BCHW, truth = self.augment(img_BCHW, batch.labels, seed)
        return self.model.criterion(model(img_BCHW)[0], truth)
