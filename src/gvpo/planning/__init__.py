"""Estimates of a run's memory, disk space and time, and settings that fit, from only the model's configuration."""

from gvpo.planning.architecture import Architecture, read_architecture
from gvpo.planning.devices import GPUS, Device, find_device
from gvpo.planning.disk import checkpoint_bytes, run_bytes
from gvpo.planning.memory import Memory, estimate_memory
from gvpo.planning.search import Plan, make_plan
from gvpo.planning.seconds import Rates, Seconds, estimate_seconds
from gvpo.planning.workload import Workload

__all__ = [
    "GPUS",
    "Architecture",
    "Device",
    "Memory",
    "Plan",
    "Rates",
    "Seconds",
    "Workload",
    "checkpoint_bytes",
    "estimate_memory",
    "estimate_seconds",
    "find_device",
    "make_plan",
    "read_architecture",
    "run_bytes",
]
