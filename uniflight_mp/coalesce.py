"""The parts of the ``coalesce`` decorator that do not depend on how a Merger sleeps."""

from __future__ import annotations

import functools
import inspect
import string
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

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
        self._signature = inspect.signature(func)
        self._identity = f"{func.__module__}:{func.__qualname__}"
        if key is None:
            self.make = self._from_arguments
        elif isinstance(key, str):
            self._template = key
            self._check_template()
            self.make = self._from_template
        elif callable(key):
            self.make = key
        else:
            raise TypeError(
                f"key must be a format string, a callable or None, not {type(key).__name__}; "
                "write @merger.coalesce() with parentheses for None"
            )

    def _check_template(self) -> None:
        try:
            fields = [field for _, field, _, _ in string.Formatter().parse(self._template)]
        except ValueError as error:
            raise ValueError(f"key {self._template!r} is no format string: {error}") from error
        for field in fields:
            if field is None:
                continue
            name = field.partition(".")[0].partition("[")[0]
            if name not in self._signature.parameters:
                known = ", ".join(self._signature.parameters) or "none"
                raise ValueError(
                    f"key {self._template!r} names {name!r}, which is no argument of "
                    f"{self._identity} (its arguments: {known})"
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
