"""What one piece of code may use."""

import math
from dataclasses import dataclass

from gvpo.errors import RewardError

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What one run of a program, or of all tests of a function, may use.

    Args:
        wall: seconds from its start.
        cpu: seconds of processor time, for each of its processes.
        memory: bytes of address space, for each of its processes.
        disk: bytes that it may write to its directory, which lies in memory.
        output: bytes that it may print, or a value that a function returns may take.
        processes: processes and threads at a time.

    Raises:
        RewardError: a limit that is not a number above 0, or not a whole one (`wall` may be any).
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
