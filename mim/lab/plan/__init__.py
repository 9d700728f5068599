"""Plans: what a run will be and cost, before it starts."""

from mim.lab.plan.hardware import HardwareChoice
from mim.lab.plan.report import PlanReport, plan_run
from mim.lab.plan.terminal import show

__all__ = ["HardwareChoice", "PlanReport", "plan_run", "show"]
