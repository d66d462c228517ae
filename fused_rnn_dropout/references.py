"""Every place from which a model reaches a module, so that a swap leaves none behind.

A model may hold a registered module a second time where ``nn.Module`` does not look: in a list, in a partial, as the
object of a bound method. :class:`Walk` follows what the model refers to, nearest first, plans an edit for each place
that holds a module to be swapped, and collects the places where none is possible. Nothing changes before
:meth:`Walk.edit`.

Followed: attributes and slots of any object, containers, functions (closure, defaults, the globals that they read),
partials, bound methods, weak references, hooks, and the functions and containers of the classes of modules. Not
followed: tensors, numbers and text, Python modules, classes as values, and what ``functools.lru_cache`` keeps.
"""

from __future__ import annotations

import functools
import gc
import inspect
import types
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from torch import nn

from . import places
from .places import CONTAINERS, PROXIES, WEAK_CONTAINERS

LIMIT = 1_000_000
"""How many places a walk looks at, some seconds. A container of numbers, text and tensors alone is one place."""

_OF_CLASSES = (*CONTAINERS, types.FunctionType, types.MethodType, staticmethod, classmethod, property,
               functools.partial, functools.partialmethod)  # fmt: skip
_NESTED = 100  # tuples in tuples that are built again, a level at a time, by recursion

Put = Callable[[Any], Any]


class _Enough(Exception):
    """The walk met its limit."""


class Walk:
    """Looks for ``replacement(path, module)``, which is None where a module stays, in all that ``root`` refers to."""

    def __init__(self, replacement: Callable[[str, nn.Module], nn.Module | None]) -> None:
        self.replacement = replacement
        self.stuck: list[str] = []
        """Paths of places that hold a module which is swapped elsewhere, and cannot be changed."""
        self.ended_at: str | None = None
        """Where the walk met its limit; None where it saw everything."""
        self.opened: list[nn.Module] = []
        """The modules that were met."""
        self._edits: list[Callable[[], Any]] = []
        self._edits_of_keys: list[Callable[[], Any]] = []  # after those of the values, which go by the old keys
        self._queue: deque[tuple[str, Any]] = deque()
        self._seen: dict[int, Any] = {}  # holds what it has seen, so that no id is used twice
        self._rebuilt: dict[int, Any] = {}
        self._looked = 0

    def run(self, root: nn.Module) -> None:
        self._visit("", root)
        while self._queue:
            path, value = self._queue.popleft()
            try:
                self._open(path, value)
            except _Enough:
                self.ended_at = path or "the model itself"
                return

    def edit(self) -> None:
        """Swaps; to be called once, after :meth:`run`."""
        for edit in self._edits + self._edits_of_keys:
            edit()

    # ---------------------------------------------------------------------------------------------------------------
    # One place
    # ---------------------------------------------------------------------------------------------------------------

    def _offer(self, path: str, value: Any, put: Put | None) -> None:
        """A place that holds ``value``; ``put`` writes another value there, None where that is not possible."""
        self._count(1)
        if places.leaf(value):
            return
        new = self._replaced(path, value)
        if new is not value:
            if put is None:
                self.stuck.append(path)
            else:
                self._edits.append(functools.partial(put, new))
        self._visit(path, value)

    def _count(self, places: int) -> None:
        self._looked += places
        if self._looked > LIMIT:
            raise _Enough

    def _visit(self, path: str, value: Any) -> None:
        if id(value) not in self._seen and not places.leaf(value):
            self._seen[id(value)] = value
            self._queue.append((path, value))

    def _replaced(self, path: str, value: Any, depth: int = 0) -> Any:
        """What stands for ``value`` after the swap: itself, unless it is a module to swap or cannot be edited."""
        kind: Any = type(value)
        if issubclass(kind, nn.Module):
            new = self.replacement(path, value)
            return value if new is None else new
        if not issubclass(kind, (types.MethodType, tuple, frozenset, weakref.ref, *PROXIES)):
            return value
        if id(value) not in self._rebuilt:
            self._visit(path, value)
            self._rebuilt[id(value)] = self._rebuild(path, value, kind, depth)
        return self._rebuilt[id(value)]

    def _rebuild(self, path: str, value: Any, kind: Any, depth: int) -> Any:
        if issubclass(kind, types.MethodType):
            return self._method(path, value)
        if issubclass(kind, weakref.ref):
            target = value()
            new = target if target is None else self._replaced(path, target)
            if new is target:
                return value
            callback = value.__callback__
            if kind is weakref.WeakMethod:  # which keeps the one that it was given in its own
                callback = inspect.getclosurevars(callback).nonlocals.get("callback")
            return self._or_stuck(path, value, kind, kind in (weakref.ref, weakref.WeakMethod), new, callback)
        if kind in PROXIES:
            target = places.behind(value)
            new = target if target is None else self._replaced(path, target)
            return value if new is target else weakref.proxy(new)
        if depth == _NESTED:
            self._search(path, value)
            return value
        items = [self._replaced(f"{path}[{index}]", item, depth + 1) for index, item in enumerate(value)]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        if hasattr(kind, "_make"):
            return kind._make(items)
        return self._or_stuck(path, value, kind, kind in (tuple, frozenset), items)

    def _search(self, path: str, value: Any) -> None:
        """Tuples nested deeper than is built again."""
        inside, seen = [value], {id(value)}
        for item in inside:
            if issubclass(type(item), (tuple, frozenset)):
                inside.extend(held for held in item if id(held) not in seen)
                seen.update(map(id, item))
            elif issubclass(type(item), nn.Module) and self.replacement(path, item) is not None:
                self.stuck.append(path)
                return

    def _or_stuck(self, path: str, value: Any, kind: Any, known: bool, *args: Any) -> Any:
        if known:
            return kind(*args)
        self.stuck.append(path)
        return value

    def _method(self, path: str, method: types.MethodType) -> Any:
        owner, function = method.__self__, method.__func__
        new = self._replaced(path, owner)
        if new is owner:
            return method
        name = getattr(function, "__name__", "")
        if getattr(type(owner), name, None) is not function:
            return types.MethodType(function, new)  # somebody's own function, bound to the module
        return getattr(new, name) if hasattr(new, name) else self._or_stuck(path, method, None, False)

    # ---------------------------------------------------------------------------------------------------------------
    # What an object holds
    # ---------------------------------------------------------------------------------------------------------------

    def _open(self, path: str, value: Any) -> None:
        kind = type(value)
        if issubclass(kind, nn.Module):
            self._open_module(path, value)
        elif issubclass(kind, (*CONTAINERS, *WEAK_CONTAINERS)):
            self._open_container(path, value, kind)
            if not issubclass(kind, WEAK_CONTAINERS):  # whose attributes hold the same once more
                self._open_attributes(path, value)
        elif issubclass(kind, types.FunctionType):
            self._open_function(path, value)
        elif issubclass(kind, types.MethodType):
            self._visit(path, value.__self__)
            self._visit(path, value.__func__)
        elif issubclass(kind, (weakref.ref, *PROXIES)):
            self._visit(path, value() if issubclass(kind, weakref.ref) else places.behind(value))
        else:
            if issubclass(kind, functools.partial):
                function, args, *_ = places.partial(value)
                state = functools.partial(places.set_partial, value)
                self._offer(f"{path}.func", function, functools.partial(state, 0))
                self._offer(f"{path}.args", args, functools.partial(state, 1))
                self._visit(f"{path}.keywords", value.keywords)
            self._open_attributes(path, value)

    def _open_module(self, path: str, module: nn.Module) -> None:
        self.opened.append(module)
        # A module that is swapped shares its attributes with the new one, which is the one that will be used.
        new = self.replacement(path, module)
        attributes = vars(module if new is None else new)
        start = f"{path}." if path else ""
        for name, value in attributes.items():
            put = functools.partial(attributes.__setitem__, name)
            if name == "_modules" and isinstance(value, dict):
                for child, held in value.items():
                    self._offer(start + child, held, functools.partial(value.__setitem__, child))
            elif name == "_parameters":
                for parameter, tensor in value.items():
                    for hooks in ("_backward_hooks", "_post_accumulate_grad_hooks"):
                        self._visit(f"{start}{parameter}.{hooks}", getattr(tensor, hooks, None))
            elif name != "_buffers":
                self._offer(start + name, value, put)
        self._open_class(type(module))

    def _open_class(self, cls: type) -> None:
        for base in cls.__mro__:
            if id(base) in self._seen or base.__module__.split(".")[0] in ("builtins", "torch", __package__):
                continue
            self._seen[id(base)] = base
            for name, value in vars(base).items():
                if issubclass(type(value), (*_OF_CLASSES, nn.Module)):
                    self._offer(f"{base.__qualname__}.{name}", value, functools.partial(type.__setattr__, base, name))

    def _open_container(self, path: str, value: Any, kind: type) -> None:
        if issubclass(kind, (dict, weakref.WeakKeyDictionary, weakref.WeakValueDictionary)):
            self._open_keys(f"{path} (a key)", value)
            for key, item in self._within(list(value.items()), lambda pair: pair[1]):
                self._offer(f"{path}[{places.key(key)}]", item, functools.partial(places.set_item, value, key))
        elif issubclass(kind, (list, deque)):
            for index, item in self._within(list(enumerate(value)), lambda pair: pair[1]):
                self._offer(f"{path}[{index}]", item, functools.partial(places.set_item, value, index))
        elif issubclass(kind, (set, weakref.WeakSet)):
            for item in self._within(list(value), lambda item: item):
                self._offer(f"{path} (an element)", item, functools.partial(places.exchange, value, item))
        else:  # a tuple or frozenset, whose holder gets a new one
            for index, item in self._within(list(enumerate(value)), lambda pair: pair[1]):
                self._visit(f"{path}[{index}]", item)

    def _within(self, items: list[Any], of: Callable[[Any], Any]) -> list[Any]:
        """Those items of a container that may lead to a module."""
        self._count(len(items))
        return [item for item in items if not places.leaf(of(item))]

    def _open_keys(self, path: str, value: Any) -> None:
        if places.all_inert(value.keys()):
            return
        changed = {}
        for key in self._within(list(value.keys()), lambda key: key):
            new = self._replaced(path, key)
            if new is not key:
                changed[id(key)] = new
            self._visit(path, key)
        if changed:
            self._edits_of_keys.append(functools.partial(places.rekey, value, changed))

    def _open_function(self, path: str, function: types.FunctionType) -> None:
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
            try:
                content = cell.cell_contents
            except ValueError:  # not assigned yet
                continue
            self._offer(f"{path}, variable {name}", content, functools.partial(setattr, cell, "cell_contents"))
        defaults = functools.partial(setattr, function, "__defaults__")
        self._offer(f"{path}.__defaults__", function.__defaults__, defaults)
        self._visit(f"{path}.__kwdefaults__", function.__kwdefaults__)
        self._visit(path, function.__dict__)
        # A constructor has read what it wanted. torch's functions and ours read no global of somebody else's.
        if function.__name__ != "__init__" and (function.__module__ or "").split(".")[0] not in ("torch", __package__):
            for name, value in places.globals_read(function):
                same_file = type(value) is types.FunctionType and value.__globals__ is function.__globals__
                if same_file or issubclass(type(value), (nn.Module, *CONTAINERS, types.MethodType, functools.partial)):
                    # Not this model's alone: a container is edited, the variable itself is left.
                    self._offer(f"{path}, global {name}", value, None)

    def _open_attributes(self, path: str, value: Any) -> None:
        """Attributes and slots; of objects written in C also what they refer to, which cannot be edited."""
        known = {id(type(value))}
        attributes = places.attributes(value)
        if attributes is not None:
            known.add(id(attributes))
            for name, held in list(attributes.items()):
                known.add(id(held))
                self._offer(f"{path}.{name}", held, functools.partial(attributes.__setitem__, name))
        for base in type(value).__mro__:
            if "__slots__" not in vars(base):
                continue
            for name, slot in vars(base).items():
                if type(slot) is not types.MemberDescriptorType:
                    continue
                try:
                    held = slot.__get__(value)
                except AttributeError:  # not assigned
                    continue
                known.add(id(held))
                self._offer(f"{path}.{name}", held, functools.partial(slot.__set__, value))
        if issubclass(type(value), (*CONTAINERS, functools.partial)):
            return
        for held in gc.get_referents(value):
            if id(held) not in known:
                self._offer(f"{path}, inside a {type(value).__name__}", held, None)
