"""Resource limits of sandboxed code."""

import math
from dataclasses import dataclass

from gvpo.errors import RewardError

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Resource limits of one run of a program, or of all tests of a function.

    Args:
        wall: Seconds from its start.
        cpu: Seconds of processor time, for each of its processes.
        memory: Bytes of address space, for each of its processes.
        disk: Bytes that it may write to its directory, which is in memory.
        output: Maximum number of bytes of its output, or of the return value of a function.
        processes: Maximum number of simultaneous processes and threads.

    Raises:
        RewardError: If a limit is not a number above 0, or not an integer (`wall` may be a fraction).
    """

    wall: float = 6.0
    cpu: int = 6
    memory: int = 1024 * MIB
    disk: int = 32 * MIB
    output: int = 8 * MIB
    processes: int = 8

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            known, wanted = (int | float, "number") if name == "wall" else (int, "whole number")
            if not isinstance(value, known) or not 0 < value < math.inf:
                raise RewardError(f"the sandbox's limit {name} is {value!r}; give a {wanted} above 0")
