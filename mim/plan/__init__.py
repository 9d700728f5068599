"""Plans: what a run will be and cost, before it starts."""

from mim.plan.assumed import Assumed
from mim.plan.planned import Planned, plan
from mim.plan.terminal import show

__all__ = ["Assumed", "Planned", "plan", "show"]
