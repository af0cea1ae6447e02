"""Devices to plan for: GPUs, with the values of their data sheets, and this machine's CPU with its memory.

The values come from NVIDIA's data sheets of A10G, L4, T4, A100, L40S, H100 SXM, H200 SXM, B200, RTX 3090 and RTX 4090.
Rates are dense bfloat16 rates (float16 for the T4, which has no bfloat16).
"""

import math
import os
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from gvpo.errors import ConfigError
from gvpo.nearest import did_you_mean

GIB = 2**30
TERA = 1e12


@dataclass(frozen=True)
class Device:
    """A kind of device, and the number of such devices.

    Args:
        name: Common name.
        kind: "cuda" or "cpu".
        memory: Bytes per device.
        rate: Peak rate of matmuls, in operations per second; 0 for a CPU, whose rates are measured at a model's sizes.
        bandwidth: Peak memory bandwidth, in bytes per second; 0 for a CPU.
        count: Number of devices.
    """

    name: str
    kind: str
    memory: float
    rate: float = 0.0
    bandwidth: float = 0.0
    count: int = 1


def _gpu(name: str, gib: float, tera: float, gigabytes: float) -> Device:
    return Device(name, "cuda", gib * GIB, tera * TERA, gigabytes * 1e9)


GPUS: dict[str, Device] = {
    device.name: device
    for device in (
        _gpu("a100-40", 40, 312, 1555),
        _gpu("a100-80", 80, 312, 2039),
        _gpu("a10g", 24, 70, 600),
        _gpu("b200", 180, 2250, 8000),
        _gpu("h100", 80, 989, 3350),
        _gpu("h200", 141e9 / GIB, 989, 4800),
        _gpu("l4", 24, 121, 300),
        _gpu("l40s", 48, 362, 864),
        _gpu("rtx3090", 24, 71, 936),
        _gpu("rtx4090", 24, 165, 1008),
        _gpu("t4", 16, 65, 320),
    )
}
"""GPUs by name."""


def find_device(name: str | None = None, count: int = 1, memory: float | None = None) -> Device:
    """Return the device to plan for.

    Args:
        name: A key of `GPUS`, or "cpu"; None for the machine's NVIDIA GPU, or its CPU if it has no NVIDIA GPU.
        count: Number of devices.
        memory: Bytes per device, if they differ from the data sheet.

    Raises:
        ConfigError: If the device is unknown, or `count` is below 1.
    """
    if count < 1:
        raise ConfigError(f"--gpus is {count}; give at least 1")
    device = _own() if name is None else _named(name)
    if device.kind == "cpu" and count > 1:
        raise ConfigError("--gpus needs --gpu NAME, the GPU to plan for")
    return replace(device, count=count, memory=memory or device.memory)


def _named(name: str) -> Device:
    plain = name.lower().replace(" ", "").replace("_", "-")
    if plain == "cpu":
        return this_cpu()
    if plain not in GPUS:
        guess = did_you_mean(plain, GPUS)
        raise ConfigError(f"the GPU {name!r} is not in the table{guess}; choose one of {', '.join(GPUS)}, or cpu")
    return GPUS[plain]


def _own() -> Device:
    names = nvidia_gpus()
    plain = names[0].lower().replace(" ", "") if names else ""
    known = next((key for key in sorted(GPUS, key=len, reverse=True) if key.partition("-")[0] in plain), None)
    if names and known is None:
        raise ConfigError(f"this machine's GPU, {names[0]}, is not in the table; choose a similar one with --gpu NAME")
    return GPUS[known] if known else this_cpu()


def nvidia_gpus() -> list[str]:
    """Return the names of the machine's NVIDIA GPUs, as reported by the driver; [] without a driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        found = subprocess.run(
            [tool, "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in found.stdout.splitlines() if line.strip()]


def this_cpu() -> Device:
    """Return this machine's CPU."""
    return Device(f"CPU with {os.cpu_count()} cores", "cpu", machine_memory())


def machine_memory() -> float:
    """Return the bytes of memory of this machine, or of its container."""
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        return min(total, float(limit))
    except (OSError, ValueError):
        return total


def free_memory() -> float:
    """Return the bytes that this process can still allocate on the machine, in its container and below `ulimit -v`."""
    return min(_available(), _left_of_container(), _left_of_address_space())


def _available() -> float:
    """Return the bytes that Linux can provide without swapping; on other systems, half of the machine's memory."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return machine_memory() / 2
    return next(1024 * float(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def _left_of_container() -> float:
    """Return the limit of the control group (version 2) minus its use, not counting reclaimable page cache."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = float((group / "memory.max").read_text())
        held = float((group / "memory.current").read_text())
        lines = (group / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):  # no such group, or "max"
        return math.inf
    return limit - held + sum(float(line.split()[1]) for line in lines if line.startswith("inactive_file"))


def _left_of_address_space() -> float:
    try:
        import resource  # not on every system

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        pages = float(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        return math.inf
    return math.inf if limit == resource.RLIM_INFINITY else limit - pages * resource.getpagesize()
