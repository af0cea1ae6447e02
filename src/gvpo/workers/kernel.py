"""Linux system calls that Python 3.11 has no names for, and a filter for calls that a sandboxed process must not make.

Does not know about sandboxes or limits. Imports only the standard library.

References: unshare(2), pivot_root(2), capabilities(7), seccomp(2); asm/unistd_64.h and
asm-generic/unistd.h for the numbers.
"""

import ctypes
import errno
import os
import platform
import struct

NEW_MOUNTS, NEW_UTS, NEW_IPC = 0x0002_0000, 0x0400_0000, 0x0800_0000
NEW_USER, NEW_PIDS, NEW_NET, NEW_CGROUP = 0x1000_0000, 0x2000_0000, 0x4000_0000, 0x0200_0000
READ_ONLY, NO_SUID, NO_DEV, NO_EXEC, REMOUNT = 1, 2, 4, 8, 32
BIND, RECURSIVE, PRIVATE = 4096, 16384, 1 << 18
_DETACH = 2
_NO_NEW_PRIVILEGES, _SECCOMP, _FILTER, _SUBREAPER, _DUMPABLE = 38, 22, 2, 36, 4
_PARENT_DEATH_SIGNAL, _SIGKILL = 1, 9
_CAPABILITIES_V3 = 0x2008_0522

_X86 = {"socket": 41, "clone": 56, "ptrace": 101, "personality": 135, "pivot_root": 155, "chroot": 161, "mount": 165}
_X86 |= {"umount2": 166, "init_module": 175, "add_key": 248, "request_key": 249, "keyctl": 250, "unshare": 272}
_X86 |= {"perf_event_open": 298, "open_by_handle_at": 304, "setns": 308, "process_vm_readv": 310}
_X86 |= {"process_vm_writev": 311, "kcmp": 312, "finit_module": 313, "bpf": 321, "userfaultfd": 323}
_X86 |= {"shmget": 29, "semget": 64, "msgget": 68, "memfd_create": 319}  # memory that process limits do not count
_ARM = {"mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51, "personality": 92, "unshare": 97}
_ARM |= {"init_module": 105, "ptrace": 117, "socket": 198, "add_key": 217, "request_key": 218, "keyctl": 219}
_ARM |= {"clone": 220, "perf_event_open": 241, "open_by_handle_at": 265, "setns": 268, "process_vm_readv": 270}
_ARM |= {"process_vm_writev": 271, "kcmp": 272, "finit_module": 273, "bpf": 280, "userfaultfd": 282}
_ARM |= {"msgget": 186, "semget": 190, "shmget": 194, "memfd_create": 279}
_X86 |= {"setpriority": 141, "sched_setparam": 142, "sched_setscheduler": 144, "sched_setaffinity": 203}
_X86 |= {"ioprio_set": 251, "migrate_pages": 256, "move_pages": 279, "sched_setattr": 314}  # affect the supervisor
_ARM |= {"setpriority": 140, "sched_setparam": 118, "sched_setscheduler": 119, "sched_setaffinity": 122}
_ARM |= {"ioprio_set": 30, "migrate_pages": 238, "move_pages": 239, "sched_setattr": 274}
_BOTH = {"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428, "move_mount": 429}
_BOTH |= {"fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "pidfd_getfd": 438, "mount_setattr": 442}
_BOTH |= {"memfd_secret": 447}
_X86_SIGNALS = {"kill": 62, "rt_sigqueueinfo": 129, "tkill": 200, "tgkill": 234, "rt_tgsigqueueinfo": 297}
_ARM_SIGNALS = {"kill": 129, "tkill": 130, "tgkill": 131, "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240}
_CLONE3, _PIDFD_SEND_SIGNAL = 435, 424
_MACHINES = {
    "x86_64": (0xC000_003E, _X86 | _BOTH, _X86_SIGNALS, 302),
    "aarch64": (0xC000_00B7, _ARM | _BOTH, _ARM_SIGNALS, 261),
}
"""Per machine: its seccomp identifier and its numbers of forbidden system calls, of signals, and of prlimit64."""

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Move this process to new namespaces; a new process namespace begins with the next child."""
    _checked(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """Mount a file system, bind a directory or change the flags of a mount."""
    arguments = [text.encode() or None for text in (source, target, kind)]
    _checked(_libc.mount(*arguments, ctypes.c_ulong(flags), data.encode() or None), f"mount {target}")


def make_root(directory: str) -> None:
    """Make a mount point the root of the file system, and detach the old root."""
    os.chdir(directory)
    numbers = {"x86_64": 155, "aarch64": 41}
    _checked(_libc.syscall(ctypes.c_long(numbers[platform.machine()]), b".", b"."), "pivot_root")
    _checked(_libc.umount2(b".", _DETACH), "umount the old root")
    os.chdir("/")


def drop_capabilities() -> None:
    """Give up every capability in this process's user namespace."""
    header, none = struct.pack("Ii", _CAPABILITIES_V3, 0), bytes(24)
    _checked(_libc.capset(header, none), "capset")


def forbid_new_privileges() -> None:
    """Prevent the programs that this process runs from having more rights than it has."""
    _checked(_libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0), "prctl no_new_privs")


def hide_memory() -> None:
    """Prevent other processes of this user from reading or tracing this one."""
    _checked(_libc.prctl(_DUMPABLE, 0, 0, 0, 0), "prctl dumpable")


def end_with_parent() -> None:
    """Let the kernel kill this process when its parent ends."""
    _checked(_libc.prctl(_PARENT_DEATH_SIGNAL, _SIGKILL, 0, 0, 0), "prctl parent death")


def adopt_orphans() -> None:
    """Make this process the parent of descendants whose own parents end."""
    _checked(_libc.prctl(_SUBREAPER, 1, 0, 0, 0), "prctl subreaper")


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def refuse_system_calls(*, signals: bool = False) -> None:
    """Make sockets, tracing, mounts, namespaces, keys, uncounted memory, kernel interfaces, other machines' calls fail.

    Args:
        signals: Make sending signals fail too.

    Raises:
        OSError: If this machine is neither x86_64 nor aarch64, or its kernel has no seccomp.
    """
    if platform.machine() not in _MACHINES:
        raise OSError(errno.ENOSYS, f"no list of system calls for {platform.machine()}")
    machine, refused, senders, limits = _MACHINES[platform.machine()]
    code = _filter(machine, refused | (senders | {"pidfd_send_signal": _PIDFD_SEND_SIGNAL} if signals else {}), limits)
    program = _Program(len(code) // 8, code)
    _checked(_libc.prctl(_SECCOMP, _FILTER, ctypes.byref(program), 0, 0), "seccomp")


def _filter(machine: int, refused: dict[str, int], limits: int) -> bytes:
    """Return classic BPF over struct seccomp_data {nr, arch, instruction pointer, args[6]}."""
    load, equal, at_least, any_bit, ret = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill, fail = 0x7FFF_0000, 0x8000_0000, 0x0005_0000
    plain = [number for name, number in refused.items() if name != "clone"]
    lines = [(load, 0, 0, 4), (equal, 1, 0, machine), (ret, 0, 0, kill), (load, 0, 0, 0)]
    lines += [(at_least, 0, 1, 0x4000_0000), (ret, 0, 0, kill)]  # x32, which has other numbers
    for number in plain:
        lines += [(equal, 0, 1, number), (ret, 0, 0, fail | errno.EPERM)]
    # Only limits of the process itself may change: a supervisor of the same user could be ended by its own limits.
    lines += [(equal, 0, 4, limits), (load, 0, 0, 16), (equal, 1, 0, 0), (ret, 0, 0, fail | errno.EPERM)]
    lines += [(ret, 0, 0, allow)]
    # Its flags are in memory, which a filter cannot read; "no such call" makes the C library use clone instead.
    lines += [(equal, 0, 1, _CLONE3), (ret, 0, 0, fail | errno.ENOSYS)]
    lines += [(equal, 0, 3, refused["clone"]), (load, 0, 0, 16), (any_bit, 0, 1, NEW_USER | NEW_PIDS | NEW_MOUNTS)]
    lines += [(ret, 0, 0, fail | errno.EPERM), (ret, 0, 0, allow)]
    return b"".join(struct.pack("HBBI", code, yes, no, value) for code, yes, no, value in lines)
