"""What runs inside a jail: a program, the functions of a completion, or the tests that call those from another jail.

    tests' jail  ── {"call": "f", args} ──▶  completion's jail
                 ◀── {"value": ...} ───────

The tests and what they expect never enter the completion's process: it sees arguments and gives back values. What it
does to its own interpreter, and it may do anything, has no effect on the comparison.

Imports the standard library only.
"""

import builtins
import importlib
import json
import os
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, BinaryIO, NoReturn

from gvpo.rewards.sandbox.values import decode, encode

PASSED, FAILED, BROKEN = "passed", "failed", "broken"
_ENDS_LOOPS = (StopIteration, StopAsyncIteration)
"""`all(map(f, cases))` takes these for the end of the cases."""


def prepare(payload: Mapping[str, Any]) -> None:
    """Import, where gvpo's own files can still be read, what only some payloads need: it takes a while."""
    if payload.get("defined"):
        importlib.import_module("gvpo.rewards.sandbox.suite")


def run(payload: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Run a payload of one of three kinds."""
    vars(builtins).update(exit=sys.exit, quit=sys.exit)  # as `site` does, which jails go without
    if payload["kind"] == "program":
        _run_program(payload)
    elif payload["kind"] == "functions":
        _serve(payload["code"])
    else:
        _test(payload, settings["verdict"], settings["output"])


def _run_program(payload: Mapping[str, Any]) -> None:
    """As `python solution.py` would: it ends as any program does, threads are waited for, exit handlers run."""
    for name, text in payload["files"].items():
        Path(name).write_text(text)
    sys.argv[:] = ["solution.py", *payload["arguments"]]
    exec(compile(payload["code"], "solution.py", "exec"), _module("__main__"))


def _module(name: str) -> dict[str, Any]:
    """The names of a new module; data classes and pickle look it up by its name."""
    module = sys.modules[name] = ModuleType(name)
    module.__dict__["__builtins__"] = builtins
    return module.__dict__


class _Host:
    """The completion's side: its module, and the objects that the tests hold references to."""

    def __init__(self, module: dict[str, Any]) -> None:
        self._module, self._objects = module, list[Any]()

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Do what the tests ask; an exception of the code is a reply too."""
        try:
            return {"value": encode(self._do(request), self._reference)}
        except Exception as error:
            kind = next(c.__name__ for c in type(error).__mro__ if getattr(builtins, c.__name__, None) is c)
            return {"raised": kind, "text": str(error)[:500]}

    def _do(self, request: Mapping[str, Any]) -> Any:
        what = self._look_up(request["of"]) if isinstance(request["of"], str) else self._objects[request["of"]]
        if request["do"] == "get":
            return getattr(what, request["name"])
        if request["do"] == "set":
            return setattr(what, request["name"], self._decode(request["value"]))
        return what(*self._decode(request["args"]), **self._decode(request["named"]))

    def _look_up(self, name: str) -> Any:
        """A function of the module, or `Class.method` of a new object."""
        owner, _, method = name.partition(".")
        if owner not in self._module:
            raise NameError(f"name {owner!r} is not defined")
        found = self._module[owner]
        return getattr(found(), method) if method else found

    def _decode(self, data: Any) -> Any:
        return decode(data, self._objects.__getitem__)

    def _reference(self, value: Any) -> int:
        self._objects.append(value)
        return len(self._objects) - 1


def _serve(code: str) -> None:
    """Define the completion's functions and call them as the tests ask, until they are done."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    module = _module("solution")
    exec(compile(code, "solution.py", "exec"), module)
    host = _Host(module)
    for line in requests:
        replies.write(json.dumps(host.answer(json.loads(line))).encode() + b"\n")
        replies.flush()
    os._exit(0)


class _Link:
    """The tests' side: asks, and reads what comes back, which may be anything of any size."""

    def __init__(self, requests: BinaryIO, replies: BinaryIO, limit: int, ended: Callable[[], NoReturn]) -> None:
        self._requests, self._replies, self._limit, self._ended = requests, replies, limit, ended

    def ask(self, do: str, of: str | int, **details: Any) -> Any:
        """The value of a call or an attribute.

        Raises:
            Exception: the builtin exception that the code raised, or the nearest to it.
        """
        sent = {name: encode(value, _number) if name != "name" else value for name, value in details.items()}
        reply = json.loads(self._exchange(json.dumps({"do": do, "of": of, **sent}).encode() + b"\n"))
        if "raised" in reply:
            raise _exception(reply["raised"])(str(reply["text"]))
        return decode(reply["value"], self._proxy)

    def _exchange(self, request: bytes) -> bytes:
        """The line that answers a request. Without one the tests end here: they could take an exception for theirs."""
        try:
            self._requests.write(request)
            self._requests.flush()
            line = self._replies.readline(self._limit)
        except BrokenPipeError:
            line = b""
        if not line.endswith(b"\n"):
            self._ended()
        return line

    def function(self, name: str) -> Callable[..., Any]:
        """A function that calls the completion's function of that name."""
        return lambda *args, **named: self.ask("call", name, args=args, named=named)

    def _proxy(self, number: int) -> "_Proxy":
        return _Proxy(self, number)


class _Proxy:
    """An object that stayed with the completion. It has attributes and can be called, and is equal to nothing.

    Truth and comparisons are refused: no object of the completion's may pass an assertion by being there.
    """

    def __init__(self, link: _Link, number: int) -> None:
        vars(self).update(_link=link, _number=number)

    def __getattr__(self, name: str) -> Any:
        return self._link.ask("get", self._number, name=name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._link.ask("set", self._number, name=name, value=value)

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._link.ask("call", self._number, args=args, named=named)

    def __eq__(self, other: object) -> bool:
        raise TypeError("the code's own objects cannot be compared")

    def __bool__(self) -> bool:
        raise TypeError("the code's own objects are neither true nor false")

    __hash__ = None  # type: ignore[assignment]  # nor are they members of sets


def _number(value: Any) -> int:
    if not isinstance(value, _Proxy):
        raise TypeError(f"a test passes a {type(value).__name__}, which cannot be sent to the code")
    return int(vars(value)["_number"])


def _exception(name: Any) -> type[Exception]:
    """Return the builtin exception of a name; never one that ends the process of the tests, or a loop of theirs."""
    kind = getattr(builtins, name, None) if isinstance(name, str) else None
    if not isinstance(kind, type) or not issubclass(kind, Exception) or issubclass(kind, _ENDS_LOOPS):
        return RuntimeError
    return kind


def _test(payload: Mapping[str, Any], verdict: int, limit: int) -> NoReturn:
    """Run the tests, with functions that call into the other jail, and write the verdict on a channel of its own."""

    def end(said: str = f"{FAILED}: the code's process has ended, or its value is too large") -> NoReturn:
        os.write(verdict, said.encode(errors="replace"))
        os._exit(0)

    link = _Link(os.fdopen(os.dup(1), "wb"), os.fdopen(os.dup(0), "rb"), limit, end)
    for stream, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY)):
        os.dup2(os.open("/dev/null", flags), stream)  # what tests read and print is no reply and no request
    random.seed(0)  # tests that draw their cases draw the same for every completion
    end(_judge(payload, link))


def _judge(payload: Mapping[str, Any], link: _Link) -> str:
    functions = {name.rpartition(".")[2]: link.function(name) for name in payload["names"]}
    _module("solution").update(functions)  # tests may import the code under this name
    module = _module("__main__")
    try:
        parts = [compile(payload[part], f"{part}.py", "exec") for part in ("setup", "tests")]
    except (SyntaxError, ValueError) as error:
        return f"{BROKEN}: {type(error).__name__}: {error}"
    try:
        _run_parts(parts, module, functions)
        if payload["defined"]:
            from gvpo.rewards.sandbox import suite  # which `prepare` has imported

            suite.run_defined(payload["defined"], module, list(functions))
    except BaseException as error:
        return f"{_blame(error)}: {type(error).__name__}: {error}"[:500]
    return PASSED


def _run_parts(parts: Sequence[CodeType], module: dict[str, Any], functions: Mapping[str, Any]) -> None:
    """Run the set-up and the tests, the latter as a main program, which may end with exit code 0."""
    for part, name in zip(parts, ("setup", "__main__"), strict=True):
        module.update(functions, __name__=name)  # again before the tests: the set-up may define the same function
        try:
            exec(part, module)
        except SystemExit as error:
            if error.code:
                raise


def _blame(error: BaseException) -> str:
    """BROKEN where tests lack a name or a module, or cannot be read. No exception of the code's own says which."""
    lacks = isinstance(error, NameError | ImportError) and error.name
    return BROKEN if lacks or type(error).__name__ == "Unreadable" else FAILED
