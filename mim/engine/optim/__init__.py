"""Optimizers: from gradients to steps, each with a learning rate and a weight decay of its parameter group."""

from mim.engine.optim.adamw import AdamW
from mim.engine.optim.base import Optimizer
from mim.engine.optim.groups import parameter_groups, unmatched, without_effect
from mim.engine.optim.lars import LARS

__all__ = ["LARS", "AdamW", "Optimizer", "parameter_groups", "unmatched", "without_effect"]
