"""What runs inside a jail: a program, the functions of a completion, or the tests that call those from another jail.

    tests' jail  ── {"call": "f", args} ──▶  completion's jail
                 ◀── {"value": ...} ───────

The tests and what they expect never enter the completion's process: it sees arguments and gives back values. What it
does to its own interpreter, and it may do anything, has no effect on the comparison.

Imports the standard library only.
"""

import builtins
import json
import os
import random
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, NoReturn

from gvpo.rewards.sandbox.values import decode, encode

PASSED, FAILED, BROKEN = "passed", "failed", "broken"


def run(payload: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Run a payload of one of three kinds."""
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

    def __init__(self, requests: BinaryIO, replies: BinaryIO, limit: int) -> None:
        self._requests, self._replies, self._limit = requests, replies, limit

    def ask(self, do: str, of: str | int, **details: Any) -> Any:
        """The value of a call or an attribute.

        Raises:
            Exception: the builtin exception that the code raised, or the nearest to it.
            RuntimeError: the code's process has ended or writes what is not a reply.
        """
        sent = {name: encode(value, _number) if name != "name" else value for name, value in details.items()}
        self._requests.write(json.dumps({"do": do, "of": of, **sent}).encode() + b"\n")
        self._requests.flush()
        line = self._replies.readline(self._limit)
        if not line.endswith(b"\n"):
            raise RuntimeError("the code's process has ended, or its value is too large")
        reply = json.loads(line)
        if "raised" in reply:
            raise _exception(reply["raised"])(str(reply["text"]))
        return decode(reply["value"], self._proxy)

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
    """The builtin exception of a name; never one that ends the process of the tests."""
    kind = getattr(builtins, name, None) if isinstance(name, str) else None
    return kind if isinstance(kind, type) and issubclass(kind, Exception) else RuntimeError


def _test(payload: Mapping[str, Any], verdict: int, limit: int) -> NoReturn:
    """Run the tests, with functions that call into the other jail, and write the verdict on a channel of its own."""
    link = _Link(os.fdopen(os.dup(1), "wb"), os.fdopen(os.dup(0), "rb"), limit)
    os.dup2(os.open("/dev/null", os.O_RDWR), 1)  # what tests print is not a request
    random.seed(0)  # tests that draw their cases draw the same for every completion
    os.write(verdict, _judge(payload, link).encode())
    os._exit(0)


def _judge(payload: Mapping[str, Any], link: _Link) -> str:
    module = _module("tests")
    functions = {name.rpartition(".")[2]: link.function(name) for name in payload["names"]}
    try:
        parts = [compile(payload[part], f"{part}.py", "exec") for part in ("setup", "tests")]
    except (SyntaxError, ValueError) as error:
        return f"{BROKEN}: {type(error).__name__}: {error}"
    try:
        for part in parts:
            module.update(functions)  # again before the tests: the set-up may define a function of the same name
            exec(part, module)
    except BaseException as error:
        return f"{FAILED}: {type(error).__name__}: {error}"[:500]
    return PASSED
