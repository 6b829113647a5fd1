"""Numbers in the code of a user's methods, `view(-1, 64, 16, 16)`, and classes that differ in them alone.

Python keeps such a number as a constant of the method's bytecode. A module that needs another one gets a
subclass of its own class, of the same name, whose method has other constants. "literal 0 of forward()" is the
first number that `forward` loads.
"""

from __future__ import annotations

import dis
import functools
from collections.abc import Sequence
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

from torch import nn

from ...targets.errors import ModelError
from .capture import users_frame

if TYPE_CHECKING:
    from .resize import Change


def guessed_literals(model: nn.Module, changes: Sequence[Change]) -> dict[str, dict[str, int]]:
    """By module, the literals from which constants may come: the last ones of their values up to the
    operator's line, all in a row or else each alone."""
    found: dict[str, dict[str, int]] = {}
    for change in changes:
        file, line, method, _ = users_frame(change.node)
        code = getattr(getattr(type(model.get_submodule(change.module)), method, None), "__code__", None)
        if isinstance(code, CodeType) and code.co_filename == file:
            end = max((stop for _, stop, at in code.co_lines() if at == line), default=0)
            before = [value for offset, _, value in _numbers(code) if offset < end]
            whole = _last(before, change.numbers) is not None
            for run in [change.numbers] if whole else [[one] for one in change.numbers]:
                at = _last(before, run)
                for place, (old, new) in enumerate(run):
                    if at is not None and old != new:
                        found.setdefault(change.module, {})[f"literal {at + place} of {method}()"] = new
    return found


def _last(numbers: Sequence[int], run: Sequence[tuple[int, int]]) -> int | None:
    """Where a run of numbers, each before and after, stands for the last time."""
    wanted = [old for old, _ in run]
    places = reversed(range(len(numbers) - len(wanted) + 1))
    return next((at for at in places if numbers[at : at + len(wanted)] == wanted), None)


def is_literal(name: str) -> bool:
    """Whether this is no attribute."""
    return " " in name


@functools.cache
def with_literals(kind: Any, literals: tuple[tuple[str, int], ...]) -> Any:
    """A class like a module's, in which literals have other values.

    Raises:
        ModelError: there is no such literal.
    """
    origin, earlier = vars(kind).get(_CHANGED, (kind, ()))
    if earlier:
        return with_literals(origin, (*earlier, *literals))

    def reduced(self: Any, protocol: Any) -> Any:
        return (_new, (kind, literals), *kind.__reduce_ex__(self, protocol)[2:])

    own: dict[str, Any] = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    own |= {"__reduce_ex__": reduced, _CHANGED: (kind, literals)}
    for name, value in literals:
        _, number, _, method = name.removesuffix("()").split()
        old = own.get(method, getattr(kind, method))
        code = _changed(old.__code__, int(number), value)
        own[method] = FunctionType(code, old.__globals__, old.__name__, old.__defaults__, old.__closure__)
        own[method].__kwdefaults__ = old.__kwdefaults__
    return type(kind.__name__, (kind,), own)


_CHANGED = "_deadweight_literals"


def _new(kind: Any, literals: tuple[tuple[str, int], ...]) -> Any:
    made = with_literals(kind, literals)
    return made.__new__(made)


def _numbers(code: CodeType) -> list[tuple[int, int, int]]:
    """The offset of the instruction that loads each number, its place in a tuple, and the number."""
    return [
        (one.offset, place, value)
        for one in dis.get_instructions(code)
        if one.opname == "LOAD_CONST" and len(code.co_consts) < 256  # more take other instructions
        for place, value in enumerate(one.argval if isinstance(one.argval, tuple) else (one.argval,))
        if type(value) is int
    ]


def _changed(code: CodeType, number: int, value: int) -> CodeType:
    numbers, content = _numbers(code), bytearray(code.co_code)
    if number >= len(numbers):
        cure = "Use the code with which it was pruned."
        raise ModelError(f"The code of {code.co_name} at {code.co_filename} is not what was pruned.", cure)
    offset, place, _ = numbers[number]
    old = code.co_consts[content[offset + 1]]
    new = (*old[:place], value, *old[place + 1 :]) if isinstance(old, tuple) else value
    content[offset + 1] = len(code.co_consts)
    return code.replace(co_code=bytes(content), co_consts=(*code.co_consts, new))
