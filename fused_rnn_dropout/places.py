"""What an object is made of, for a walk along references, and how a place in it gets another value."""

from __future__ import annotations

import dis
import functools
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

_INERT = (str, bytes, bytearray, int, float, complex, types.NoneType, type, types.ModuleType, types.CodeType, range,
          types.FrameType, torch.Tensor, torch.Size, torch.dtype, torch.device, torch.Generator, torch.fx.Graph,
          torch.jit.ScriptModule)  # fmt: skip
CONTAINERS = (list, dict, tuple, set, frozenset, deque)
WEAK_CONTAINERS = (weakref.WeakSet, weakref.WeakKeyDictionary, weakref.WeakValueDictionary)
PROXIES = (weakref.ProxyType, weakref.CallableProxyType)
_inert: Callable[[Any], bool] = functools.lru_cache(maxsize=1024)(lambda kind: issubclass(kind, _INERT))


def all_inert(values: Iterable[Any]) -> bool:
    return all(map(_inert, set(map(type, values))))


def leaf(value: Any) -> bool:
    """Whether ``value`` can lead to no module: it is none of a kind that could, or a container of such alone."""
    kind = type(value)
    if kind in (list, tuple, set, frozenset, deque):
        return all_inert(value)
    return all_inert(value) and all_inert(value.values()) if kind is dict else _inert(kind)


def key(key: Any) -> str:
    return repr(key) if type(key) in (str, int) else type(key).__name__


def rekey(target: Any, changed: dict[int, Any]) -> None:
    """Exchanges keys and keeps the order."""
    items = list(target.items())
    target.clear()
    for key, value in items:
        target[changed.get(id(key), key)] = value


def exchange(target: Any, old: Any, new: Any) -> None:
    target.discard(old)
    target.add(new)


def set_item(target: Any, key: Any, new: Any) -> None:
    """Past what a subclass makes of an assignment."""
    base = next((kind for kind in (dict, list) if isinstance(target, kind)), type(target))
    base.__setitem__(target, key, new)


def partial(target: functools.partial[Any]) -> tuple[Any, ...]:
    """Function, arguments, keywords and attributes, as ``__setstate__`` takes them."""
    state: Any = functools.partial.__reduce__(target)[2]
    return state


def set_partial(target: functools.partial[Any], part: int, new: Any) -> None:
    state = list(partial(target))
    state[part] = new
    functools.partial.__setstate__(target, tuple(state))  # type: ignore[attr-defined]


def attributes(value: Any) -> dict[str, Any] | None:
    """The dict of an object's attributes, without a word to its own ``__getattr__``."""
    try:
        found = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return None
    return found if isinstance(found, dict) else None


def behind(proxy: Any) -> Any:
    """What a weak proxy stands for; None where that is gone."""
    try:
        return proxy.__repr__.__self__
    except ReferenceError:
        return None


def globals_read(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """The globals that a function reads, by name, where they are something that may hold a module."""
    codes, known = [function.__code__], function.__globals__
    for code in codes:
        codes.extend(const for const in code.co_consts if isinstance(const, types.CodeType))
        names = [name for name in code.co_names if not _inert(type(known.get(name)))]
        if names:  # an attribute's name looks the same there
            read = {instruction.argval for instruction in dis.get_instructions(code) if "GLOBAL" in instruction.opname}
            yield from ((name, known[name]) for name in names if name in read)
