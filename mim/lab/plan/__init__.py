"""Plans: what a run will be and cost, before it starts."""

from mim.lab.plan.hardware import Assumed
from mim.lab.plan.report import PlanReport, plan
from mim.lab.plan.terminal import show

__all__ = ["Assumed", "PlanReport", "plan", "show"]
