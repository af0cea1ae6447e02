"""Code inside a sandbox: a program, the functions of a completion, or tests that call those from another sandbox.

    tests' sandbox  ── {"call": "f", args} ──▶  completion's sandbox
                    ◀── {"value": ...} ───────

The tests and their expected values never enter the completion's process: it receives arguments and returns values. It
may do anything to its own interpreter, which has no effect on the comparison.

Imports only the standard library.
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
"""Exceptions that `all(map(f, cases))` takes for the end of the cases."""


def prepare(payload: Mapping[str, Any]) -> None:
    """Import modules that only some payloads need, while gvpo's own files can still be read; this takes a while."""
    if payload.get("defined"):
        importlib.import_module("gvpo.rewards.sandbox.suite")


def run(payload: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Run a payload of one of three kinds."""
    vars(builtins).update(exit=sys.exit, quit=sys.exit)  # normally done by `site`, which sandboxes do not import
    if payload["kind"] == "program":
        _run_program(payload)
    elif payload["kind"] == "functions":
        _serve(payload["code"])
    else:
        _test(payload, settings["verdict"], settings["output"])


def _run_program(payload: Mapping[str, Any]) -> None:
    """Run a program like `python solution.py`: wait for its threads at the end, and run its exit handlers."""
    for name, text in payload["files"].items():
        Path(name).write_text(text)
    sys.argv[:] = ["solution.py", *payload["arguments"]]
    exec(compile(payload["code"], "solution.py", "exec"), _module("__main__"))


def _module(name: str) -> dict[str, Any]:
    """Return the namespace of a new module; data classes and pickle look it up by its name."""
    module = sys.modules[name] = ModuleType(name)
    module.__dict__["__builtins__"] = builtins
    return module.__dict__


class _Host:
    """The completion's side: its module, and the objects that the tests have references to."""

    def __init__(self, module: dict[str, Any]) -> None:
        self._module, self._objects = module, list[Any]()

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Run a request of the tests; an exception of the code is a reply too."""
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
        """Return a function of the module, or `Class.method` of a new object."""
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
    """Define the completion's functions and run the requests of the tests until there are no more."""
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
    """The tests' side: sends requests, and reads replies, which may be anything of any size."""

    def __init__(self, requests: BinaryIO, replies: BinaryIO, limit: int, ended: Callable[[], NoReturn]) -> None:
        self._requests, self._replies, self._limit, self._ended = requests, replies, limit, ended

    def ask(self, do: str, of: str | int, **details: Any) -> Any:
        """Return the value of a call or an attribute.

        Raises:
            Exception: The builtin exception that the code raised, or the most similar one.
        """
        sent = {name: encode(value, _number) if name != "name" else value for name, value in details.items()}
        reply = json.loads(self._exchange(json.dumps({"do": do, "of": of, **sent}).encode() + b"\n"))
        if "raised" in reply:
            raise _exception(reply["raised"])(str(reply["text"]))
        return decode(reply["value"], lambda number: _Proxy(self, number))

    def _exchange(self, request: bytes) -> bytes:
        """Return the line that answers a request. End the tests if there is none, since they could catch an error."""
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
        """Return a function that calls the completion's function of that name."""
        return lambda *args, **named: self.ask("call", name, args=args, named=named)


class _Proxy:
    """An object that stayed in the completion's process. It has attributes, can be called, and equals nothing.

    Truth and comparisons raise: no object of the completion may pass an assertion merely by existing.
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

    __hash__ = None  # type: ignore[assignment]  # they cannot be members of sets either


def _number(value: Any) -> int:
    if not isinstance(value, _Proxy):
        raise TypeError(f"a test passes a {type(value).__name__}, which cannot be sent to the code")
    return int(vars(value)["_number"])


def _exception(name: Any) -> type[Exception]:
    """Return the builtin exception of a name, but never one that would end the process or a loop of the tests."""
    kind = getattr(builtins, name, None) if isinstance(name, str) else None
    if not isinstance(kind, type) or not issubclass(kind, Exception) or issubclass(kind, _ENDS_LOOPS):
        return RuntimeError
    return kind


def _test(payload: Mapping[str, Any], verdict: int, limit: int) -> NoReturn:
    """Run the tests with functions that call into the other sandbox, and write the verdict to a separate channel."""

    def end(said: str = f"{FAILED}: the code's process has ended, or its value is too large") -> NoReturn:
        os.write(verdict, said.encode(errors="replace"))
        os._exit(0)

    link = _Link(os.fdopen(os.dup(1), "wb"), os.fdopen(os.dup(0), "rb"), limit, end)
    for stream, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY)):
        os.dup2(os.open("/dev/null", flags), stream)  # what tests read and print must not mix with requests and replies
    random.seed(0)  # tests with random cases have the same cases for every completion
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
            from gvpo.rewards.sandbox import suite  # `prepare` has already imported it

            suite.run_defined(payload["defined"], module, list(functions))
    except BaseException as error:
        return f"{_blame(error)}: {type(error).__name__}: {error}"[:500]
    return PASSED


def _run_parts(parts: Sequence[CodeType], module: dict[str, Any], functions: Mapping[str, Any]) -> None:
    """Run the setup and the tests, the latter as a main program, which may end with exit code 0."""
    for part, name in zip(parts, ("setup", "__main__"), strict=True):
        module.update(functions, __name__=name)  # again before the tests: the setup may define the same function
        try:
            exec(part, module)
        except SystemExit as error:
            if error.code:
                raise


def _blame(error: BaseException) -> str:
    """Return BROKEN if tests lack a name or a module, or cannot be read; exceptions of the code have no `name`."""
    lacks = isinstance(error, NameError | ImportError) and error.name
    return BROKEN if lacks or type(error).__name__ == "Unreadable" else FAILED
