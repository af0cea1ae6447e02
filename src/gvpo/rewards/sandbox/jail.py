"""The sandbox's first processes: they build it, watch the sandboxed process and end everything that it started.

    starter ──▶ supervisor (process 1 of its namespace) ──▶ sandboxed process and its descendants

The supervisor ends when the sandboxed process does, when time is up, or when the parent closes the lifeline; then the
kernel ends all other processes in its namespace, and the starter returns. No process runs sandboxed code before all
limits apply to it. Without namespaces (`isolate` false) the supervisor ends its descendants itself.

Imports only the standard library; a bare interpreter runs it.
"""

import contextlib
import json
import os
import resource
import select
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gvpo.rewards.sandbox import guest
from gvpo.workers import children, kernel

ROOT = "/proc"
"""Directory in which the new root is built: every system has it, and it contains nothing that the code needs."""
HOME = "/tmp"
"""Directory of the sandboxed process, inside the sandbox."""
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
_PACKAGES = ("site-packages", "dist-packages")
_FIRST_UID = 0x7000_0000
"""First user ID of sandboxed processes that root starts; each has its own, so that limits and signals are separate."""
_KEEP = 0x0001 | 0x0002 | 0x0004 | 0x0008 | 0x0400 | 0x0800 | 0x1000
"""Mount flags that a new user namespace may not remove: ro, nosuid, nodev, noexec, noatime, nodiratime, relatime."""
_OPEN_FILES = 64


def main(argument: str) -> None:
    """Build a sandbox and run code in it; return only in the sandboxed process, when its code has ended.

    Args:
        argument: JSON with the descriptors `payload`, `status`, `lifeline` and perhaps `verdict`, `isolate`, and the
            limits.
    """
    settings = json.loads(argument)
    with os.fdopen(settings["payload"], "rb") as file:
        payload = json.load(file)
    guest.prepare(payload)
    try:
        if settings["isolate"]:
            _leave_namespaces()
        supervisor = os.fork()
    except OSError as error:
        _report(settings["status"], error=str(error))
        os._exit(1)
    if supervisor:
        _silence(settings)
        os.waitpid(supervisor, 0)
        os._exit(0)
    if _supervise(settings):
        guest.run(payload, settings)


def _leave_namespaces() -> None:
    """Leave the namespaces: root directly; other users, and root of a container, through a new user namespace."""
    flags = kernel.NEW_MOUNTS | kernel.NEW_PIDS | kernel.NEW_NET | kernel.NEW_IPC | kernel.NEW_UTS
    if os.geteuid() == 0:
        with contextlib.suppress(PermissionError):
            kernel.unshare(flags)
            return
    user, group = os.geteuid(), os.getegid()
    kernel.unshare(flags | kernel.NEW_USER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def _supervise(settings: Mapping[str, Any]) -> bool:
    """Finish the sandbox, start the sandboxed process and watch it; return (True) only in that process."""
    status = settings["status"]
    try:
        kernel.end_with_parent()
        os.setsid()
        uid = _guest_uid() if settings["isolate"] else os.geteuid()
        if settings["isolate"]:
            _build_root(settings["disk"], uid)
        else:
            kernel.adopt_orphans()
        start, go = os.pipe()
        ended = children.notice_ends()
        child = os.fork()
        if child == 0:
            os.close(go)
            os.read(start, 1)
            children.forget_ends(ended)
            return _become_guest(settings, uid, start)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the only signal that the interpreter itself handles
        kernel.hide_memory()
        _silence(settings, but=(status, settings["lifeline"]))
    except OSError as error:
        _report(status, error=str(error))
        os._exit(1)
    os.close(go)
    _watch(child, ended, settings)
    if not settings["isolate"]:
        _end_descendants()
    os._exit(0)


def _guest_uid() -> int:
    """Return the user ID of the sandboxed process: our own, or an unused one if it can be chosen."""
    if os.geteuid() != 0 or not _may_change_user():
        return os.geteuid()
    return _FIRST_UID + Path("/proc/self/ns/pid").stat().st_ino % 0x0FFF_FFFF


def _may_change_user() -> bool:
    lines = Path("/proc/self/uid_map").read_text().splitlines()
    return any(int(line.split()[0]) == 0 and int(line.split()[2]) > _FIRST_UID + 0x0FFF_FFFF for line in lines)


def _build_root(size: int, uid: int) -> None:
    """Build a file system in memory, with the standard library and system libraries read-only, and HOME."""
    kernel.mount("", "/", flags=kernel.PRIVATE | kernel.RECURSIVE)
    kernel.mount("tmpfs", ROOT, "tmpfs", kernel.NO_SUID | kernel.NO_DEV, f"size={size},nr_inodes=4096,mode=755")
    libraries = [os.path.dirname(os.path.dirname(json.__file__))]  # noqa: PTH120 - symbolic links must stay
    for directory in dict.fromkeys((*_LIBRARIES, *libraries)):
        _show(directory)
    for library in libraries:
        for name in _PACKAGES:
            if Path(f"{ROOT}{library}/{name}").is_dir():
                kernel.mount("tmpfs", f"{ROOT}{library}/{name}", "tmpfs", kernel.READ_ONLY, "size=4k,mode=755")
    Path(f"{ROOT}/dev").mkdir()
    Path(f"{ROOT}/dev/null").touch()
    kernel.mount("/dev/null", f"{ROOT}/dev/null", flags=kernel.BIND)
    Path(ROOT + HOME).mkdir(mode=0o700)
    os.chown(ROOT + HOME, uid, uid if uid != os.geteuid() else os.getegid())
    kernel.make_root(ROOT)


def _show(directory: str) -> None:
    """Let the sandboxed process read a directory at its usual path."""
    source, target = Path(directory), Path(ROOT + directory)
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink():
        target.symlink_to(source.readlink())
    elif source.is_dir() and not target.exists():
        target.mkdir()
        kernel.mount(directory, str(target), flags=kernel.BIND | kernel.RECURSIVE)
        flags = kernel.REMOUNT | kernel.BIND | kernel.READ_ONLY | kernel.NO_SUID | kernel.NO_DEV
        kernel.mount("", str(target), flags=flags | (os.statvfs(target).f_flag & _KEEP))


def _become_guest(settings: Mapping[str, Any], uid: int, start: int) -> bool:
    """Give up everything but the standard streams and perhaps the channel for a verdict."""
    try:
        os.close(start)
        os.close(settings["lifeline"])
        os.setsid()
        os.chdir(HOME if settings["isolate"] else settings["directory"])
        if uid != os.geteuid():
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        kernel.drop_capabilities()
        kernel.forbid_new_privileges()
        _limit(settings)
        kernel.refuse_system_calls(signals=not settings["isolate"])
        kernel.hide_memory()
    except Exception as error:  # our exit code would be taken for that of the sandboxed process
        _report(settings["status"], error=str(error) or repr(error))
        os._exit(1)
    os.close(settings["status"])  # from here on only the supervisor reports to the parent
    return True


def _limit(settings: Mapping[str, Any]) -> None:
    """Set the limits of the sandboxed processes. Their number is limited per user, so this needs a separate user ID."""
    cpu = settings["cpu"]
    limits = {
        resource.RLIMIT_CPU: (cpu, cpu + 1),
        resource.RLIMIT_AS: (settings["memory"],) * 2,
        resource.RLIMIT_FSIZE: (settings["disk"],) * 2,
        resource.RLIMIT_NOFILE: (_OPEN_FILES,) * 2,
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_MSGQUEUE: (0, 0),
        resource.RLIMIT_MEMLOCK: (0, 0),
    }
    if settings["isolate"]:
        limits[resource.RLIMIT_NPROC] = (settings["processes"],) * 2
    for which, (soft, hard) in limits.items():
        most = resource.getrlimit(which)[1]
        hard = hard if most == resource.RLIM_INFINITY else min(hard, most)
        resource.setrlimit(which, (min(soft, hard), hard))


def _watch(child: int, ended: tuple[int, int], settings: Mapping[str, Any]) -> None:
    """Wait until the process ends, its time is up or the parent is gone; report how it ended and how long it ran."""
    lifeline, started = settings["lifeline"], time.monotonic()
    poll = select.poll()
    poll.register(ended[0], select.POLLIN)
    poll.register(lifeline, select.POLLIN)
    while (left := started + settings["wall"] - time.monotonic()) > 0:
        ready = {descriptor for descriptor, _ in poll.poll(left * 1000)}
        if lifeline in ready:
            break
        if ended[0] in ready:
            os.read(ended[0], 1 << 12)
            status = children.reap().get(child)  # orphans of the sandboxed process are reaped too
            if status is not None:
                code = os.waitstatus_to_exitcode(status)
                _report(settings["status"], code=code, seconds=time.monotonic() - started)
                return
    os.kill(child, signal.SIGKILL)
    _report(settings["status"], late=True, seconds=time.monotonic() - started)


def _end_descendants() -> None:
    """Kill children until there are none, orphans included; used without a namespace."""
    while True:
        with contextlib.suppress(OSError):
            for child in children.living():
                os.kill(child, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _silence(settings: Mapping[str, Any], but: tuple[int, ...] = ()) -> None:
    """Close the ends of the channels that belong to the sandboxed process, so that readers notice when it is gone."""
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in {0, 1, 2, settings["status"], settings["lifeline"], settings["verdict"]} - {*but, None}:
        os.dup2(null, descriptor)


def _report(status: int, **what: Any) -> None:
    with contextlib.suppress(OSError):
        os.write(status, json.dumps(what).encode())
