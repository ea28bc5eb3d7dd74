"""The parts of the ``coalesce`` decorator that do not depend on how a Merger sleeps."""

from __future__ import annotations

import functools
import inspect
import string
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

from .keys import identity

if TYPE_CHECKING:
    from .base import BaseMerger

__all__ = ["Coalesced", "KeyMaker", "wrap"]

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class KeyMaker:
    """Makes a decorated function's keys from the arguments of its calls."""

    def __init__(self, func: Callable[..., Any], key: object) -> None:
        if not callable(func):
            raise TypeError(f"coalesce decorates a function, not {type(func).__name__}")
        self.make: Callable[..., object]
        if callable(key):
            self.make = key
        elif key is None:
            self._identity = _identity(func)
            self._signature = _signature(func)
            self.make = self._from_arguments
        elif isinstance(key, str):
            self._template = key
            self._signature = _signature(func)
            self._check_template()
            self.make = self._from_template
        else:
            raise TypeError(
                f"key must be a format string, a callable or None, not {type(key).__name__}; "
                "write @merger.coalesce() with parentheses for None"
            )

    def _check_template(self) -> None:
        try:
            names = set(_names_in(self._template))
        except ValueError as error:
            raise ValueError(f"key {self._template!r} is no format string: {error}") from error
        for name in sorted(names - self._signature.parameters.keys()):
            known = ", ".join(self._signature.parameters) or "none"
            raise ValueError(
                f"key {self._template!r} names {name!r}, which is no argument of the function "
                f"(its arguments: {known})"
            )

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments

    def _from_template(self, *args: Any, **kwargs: Any) -> object:
        return self._template.format_map(self._bind(args, kwargs))

    def _from_arguments(self, *args: Any, **kwargs: Any) -> object:
        values = []
        for name, value in self._bind(args, kwargs).items():
            kind = self._signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_KEYWORD:
                value = tuple(sorted(value.items()))
            values.append(value)
        return (self._identity, *values)


def _identity(func: Callable[..., Any]) -> str:
    name = getattr(func, "__qualname__", None)
    if name is None or name.endswith("<lambda>"):  # which all lambdas of a module share
        what = "lambda" if name else type(func).__name__
        raise TypeError(f"a {what} has no name that could be part of a key: give coalesce a key")
    return identity(func)


def _signature(func: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(func)
    except ValueError as error:
        raise ValueError(f"{error}: give coalesce a callable that makes the key") from error


def _names_in(template: str) -> Iterator[str]:
    """Yield the arguments that a format string names, in its format specifications too."""
    for _, field, specification, _ in string.Formatter().parse(template):
        if field is not None:
            yield field.partition(".")[0].partition("[")[0]
        yield from _names_in(specification or "")


class Coalesced(Protocol[P, T_co]):
    """A decorated function: called as the plain one, its calls coalesce."""

    merger: BaseMerger
    uncoalesced: Callable[..., Any]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T_co: ...


def wrap(func: Callable[P, T], call: Callable[P, T], merger: BaseMerger) -> Coalesced[P, T]:
    """Make ``call`` look like ``func``, and give it the attributes of ``Coalesced``."""
    wrapper: Any = functools.wraps(func)(call)
    wrapper.merger = merger
    wrapper.uncoalesced = func
    coalesced: Coalesced[P, T] = wrapper
    return coalesced
