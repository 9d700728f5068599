"""Finetune: one step is a classification of augmented images, the encoder trained with its classifier.

Shapes: B batch, K classes.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from mim.data.augment import BatchAugment
from mim.data.batch import Batch
from mim.engine.protocol import Report, StepContext
from mim.evaluation.accuracy import Counts
from mim.ops.seeding import derive_seed
from mim.tasks.classify import Classify


@dataclass(eq=False, kw_only=True)
class Finetune(Classify):
    """Fine-tuning of a pretrained encoder, or training from scratch, of all blocks or the last ones. See Classify."""

    name = "finetune"

    augment: BatchAugment  # erases and mixes the images of a batch on the device
    smoothing: float  # of labels, where images are not mixed

    def loss(self, model: nn.Module, batch: Batch, context: StepContext) -> Tensor:
        """Cross-entropy, in fp32. Erasing and mixing depend on the seed, the step and the row in the global batch."""
        seed = derive_seed(context.seed, "mix", context.step, context.start)
        img_BCHW = self.preprocess(batch.images_BCHW, batch.crops_B5)
        img_BCHW, truth = self.augment(img_BCHW, batch.labels, seed)
        mixed = truth.ndim == 2  # (B, K) weights of the classes; mixing has smoothed them
        scores_BK = model(img_BCHW)[0].float()
        return F.cross_entropy(scores_BK, truth, label_smoothing=0.0 if mixed else self.smoothing)

    def report(self, counts: list[Counts]) -> Report:
        return self.report_of(counts[0], {}, "Fine-tuned")
