"""Contract: the decorator, and submit."""

from __future__ import annotations

import functools
import inspect
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor

import pytest

from uniflight_mp import FlightTimeout, Merger, Role


def never(*args, **kwargs):
    raise AssertionError("the function of a follower was called")


def give(value):
    return value


def keys(merger):
    return [flight.key for flight in merger.flights()]


def key_while_running(merger, key, *args, func=None, **kwargs):
    """Call a decorated function and return the key under which it ran."""

    def price(sku, currency="EUR", *rest, day=1, **more):
        return keys(merger)

    (found,) = merger.coalesce(key)(func or price)(*args, **kwargs)
    return found


# ---- keys of a decorated function -------------------------------------------------------


def test_a_template_makes_the_key_from_bound_arguments(merger):
    assert key_while_running(merger, "sku:{sku}", 42) == "sku:42"
    assert key_while_running(merger, "sku:{sku}", sku=42) == "sku:42"
    assert key_while_running(merger, "{sku}/{currency}/{day:03}", 42, day=7) == "42/EUR/007"
    assert key_while_running(merger, "{sku.real}-{rest[0]}", 42, "EUR", "x") == "42-x"
    assert key_while_running(merger, "{sku:{day}}", 4, day=3) == "  4"
    assert key_while_running(merger, "all", 42) == "all"


def test_a_callable_makes_the_key_from_the_arguments_as_given(merger):
    def make(*args, **kwargs):
        return ("made", len(args), *kwargs)

    assert key_while_running(merger, make, 1, "USD", day=3) == ("made", 2, "day")
    assert key_while_running(merger, lambda sku: sku * 2, 21) == 42


def test_without_a_key_the_functions_name_and_all_arguments_are_the_key(merger):
    def full(*args, **kwargs):
        found = key_while_running(merger, None, *args, **kwargs)
        assert found[0] == f"{__name__}:key_while_running.<locals>.price"
        return found[1:]

    same = (42, "EUR", (), 1, ())
    assert full(42) == full(sku=42) == full(42, "EUR") == full(42, day=1, currency="EUR") == same
    assert full(42, "USD", 1, 2, day=3) == (42, "USD", (1, 2), 3, ())
    assert full(1, b=2, a=1) == full(1, a=1, b=2) == (1, "EUR", (), 1, (("a", 1), ("b", 2)))
    assert full(1) != full("1")


def test_arguments_that_cannot_be_part_of_a_key_are_refused_with_the_ways_out(merger):
    decorated = merger.coalesce()(never)
    with pytest.raises(TypeError, match="key= function"):
        decorated([1])


def test_wrong_arguments_are_the_functions_own_error(merger):
    @merger.coalesce("{sku}")
    def price(sku):
        raise AssertionError

    with pytest.raises(TypeError, match="'sku'"):
        price()


@pytest.mark.parametrize(
    ("key", "error", "text"),
    [
        ("sku:{id}", ValueError, "names 'id', which is no argument of .*its arguments: sku, day"),
        ("{sku:{width}}", ValueError, "names 'width'"),
        ("{}", ValueError, "names ''"),
        ("{0}", ValueError, "names '0'"),
        ("{sku", ValueError, "is no format string"),
        (5, TypeError, "key must be a format string, a callable or None, not int"),
        (("a", 1), TypeError, "not tuple"),
    ],
)
def test_a_bad_key_is_an_error_when_the_function_is_decorated(merger, key, error, text):
    with pytest.raises(error, match=text):

        @merger.coalesce(key)
        def price(sku, day):
            raise AssertionError


def test_what_is_no_function_is_refused(merger):
    for thing in (5, "x", classmethod(never)):
        with pytest.raises(TypeError, match=f"decorates a function, not {type(thing).__name__}"):
            merger.coalesce("key")(thing)


def test_callables_without_a_name_need_a_key(merger):
    partial = functools.partial(give, 3)
    with pytest.raises(TypeError, match="partial has no name that could be part of a key: give"):
        merger.coalesce()(partial)
    assert merger.coalesce("three")(partial)() == 3
    with pytest.raises(TypeError, match="a lambda has no name that could be part of a key"):
        merger.coalesce()(lambda: 4)
    assert merger.coalesce("four")(lambda: 4)() == 4
    assert merger.coalesce(lambda *args: args)(max)(3, 4) == 4


def test_forgetting_the_parentheses_is_an_error_at_the_first_call(merger):
    @merger.coalesce
    def price(sku):
        raise AssertionError

    with pytest.raises(TypeError, match="coalesce decorates a function, not int"):
        price(42)


# ---- what the wrapper is ----------------------------------------------------------------


def test_the_wrapper_keeps_what_the_function_looks_like(merger):
    def price(sku: int, *, day: str = "today") -> float:
        """Fetch a price."""
        return 1.5

    wrapper = merger.coalesce("{sku}")(price)
    assert wrapper.__name__ == "price"
    assert wrapper.__qualname__ == price.__qualname__
    assert wrapper.__module__ == __name__
    assert wrapper.__doc__ == "Fetch a price."
    assert wrapper.__annotations__ == price.__annotations__
    assert inspect.signature(wrapper) == inspect.signature(price)
    assert wrapper.__wrapped__ is price
    assert wrapper.merger is merger
    assert wrapper.uncoalesced is price
    assert wrapper(1) == 1.5


def test_uncoalesced_calls_the_function_itself(merger, leading):
    wrapper = merger.coalesce("key")(give)
    leading(merger, "key")
    assert wrapper.uncoalesced(1) == 1


def test_decorated_calls_coalesce_with_each_other_and_with_execute(merger, crew, leading, followed):
    wrapper = merger.coalesce("sku:{value}")(give)
    leader = leading(merger, "sku:42")
    call = crew.start(decorated_call, merger, 42)
    thread = crew.start(wrapper, 42, where="threads")
    followed(merger, 2)
    leader.finish("price")
    assert [call.result(), thread.result()] == ["price", "price"]


def decorated_call(merger, value):
    return merger.coalesce("sku:{value}")(never_of_value)(value)


def never_of_value(value):
    raise AssertionError


def test_a_decorated_function_has_the_options_of_its_merger(merger, leading):
    wrapper = merger.with_options(timeout=0).coalesce("key")(give)
    leading(merger, "key")
    with pytest.raises(FlightTimeout):
        wrapper(1)


class Shop:
    """Decorated in the body: one wrapper for all instances."""

    def __init__(self, name):
        self.name = name

    def price(self, sku):
        return f"{self.name}:{sku}"

    @staticmethod
    def tax(sku):
        return sku + 1

    @classmethod
    def kind(cls, sku):
        return cls.__name__


def test_methods_can_be_decorated(merger):
    class Coalesced(Shop):
        price = merger.coalesce("{self.name}:{sku}")(Shop.price)
        tax = staticmethod(merger.coalesce()(Shop.tax))
        kind = classmethod(merger.coalesce("kind:{sku}")(Shop.kind.__func__))

    shop = Coalesced("here")
    assert (shop.price(1), Coalesced("there").price(sku=1)) == ("here:1", "there:1")
    assert (shop.tax(1), Coalesced.tax(2)) == (2, 3)
    assert (shop.kind(1), Coalesced.kind(1)) == ("Coalesced", "Coalesced")


def test_a_method_without_a_key_asks_for_one_because_of_self(merger):
    class Coalesced(Shop):
        price = merger.coalesce()(Shop.price)

    with pytest.raises(TypeError, match="key= function"):
        Coalesced("here").price(1)


def test_recursion_works_for_other_arguments_and_is_refused_for_the_same(merger):
    @merger.coalesce("{n}")
    def factorial(n):
        return n * factorial(n - 1) if n else 1

    assert factorial(5) == 120

    @merger.coalesce("{n}")
    def endless(n):
        return endless(n)

    with pytest.raises(RuntimeError, match="already leads"):
        endless(1)


SCRIPT = """
import multiprocessing, time
from uniflight_mp import Merger

merger = Merger({name!r})

@merger.coalesce()
def where(sku):
    while merger.flights()[0].followers < 1:
        time.sleep(0.001)
    return "one execution"

class NotFound(Exception):
    pass

@merger.coalesce()
def fails(sku):
    while merger.flights()[0].followers < 1:
        time.sleep(0.001)
    raise NotFound(sku)

def catches(sku):
    try:
        fails(sku)
    except NotFound as error:
        return error.args

if __name__ == "__main__":
    for kind in ("spawn", "fork", "forkserver"):
        with multiprocessing.get_context(kind).Pool(1) as pool:
            there = pool.apply_async(where, (42,))
            assert where(42) == there.get(30) == "one execution"
            there = pool.apply_async(catches, (42,))
            assert catches(42) == there.get(30) == (42,), kind
    assert merger.stats().leaders == 6
"""


def test_functions_and_exceptions_of_a_script_are_the_same_in_its_spawned_children(
    table_name, tmp_path
):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT.format(name=table_name)))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")


# ---- submit -----------------------------------------------------------------------------


def test_submit_returns_a_future_of_the_value(merger):
    future = merger.submit("key", dict, [("a", 1)], b=2)
    assert isinstance(future, Future)
    assert future.result(30) == {"a": 1, "b": 2}


def test_submitted_calls_coalesce(merger, hands, leading, followed):
    leader = leading(merger, "key")
    futures = [merger.submit("key", never) for _ in range(3)]
    followed(merger, 3)
    leader.finish(1)
    assert [future.result(30) for future in futures] == [1, 1, 1]


def test_submit_delivers_exceptions(merger):
    future = merger.submit("key", lambda: 1 / 0)
    assert isinstance(future.exception(30), ZeroDivisionError)


def test_submit_uses_the_executor_it_is_given(merger):
    with ThreadPoolExecutor(1, thread_name_prefix="mine") as executor:
        future = merger.submit("key", threading.current_thread, executor=executor)
        assert future.result(30).name.startswith("mine")
    with pytest.raises(RuntimeError, match="shutdown"):
        merger.submit("key", give, 1, executor=executor)


def test_submit_works_with_a_pool_of_processes(merger):
    with ProcessPoolExecutor(1) as executor:
        assert merger.submit("key", os.getpid, executor=executor).result(30) != os.getpid()


def test_the_pool_of_a_merger_ends_with_it(table_name):
    with Merger(table_name) as merger:
        thread = merger.submit("key", threading.current_thread).result(30)
        assert table_name in thread.name
    thread.join(30)
    assert not thread.is_alive()


def test_submit_works_in_a_forked_child_whose_parent_used_it(merger, hands):
    assert merger.submit("key", give, 1).result(30) == 1
    call = hands.start(submit_and_wait, merger, where="forked")
    assert call.result() == (2, call.pid)
    assert merger.submit("key", give, 3).result(30) == 3


def submit_and_wait(merger):
    return merger.submit("key", give, 2).result(30), merger.submit("k", os.getpid).result(30)


def test_a_submitted_call_that_joins_the_submitters_flight_is_a_follower(merger, followed):
    def function():
        futures.append(merger.submit("key", never))
        followed(merger)
        return 1

    futures = []
    outcome = merger.flight("key", function)
    assert (outcome.role, outcome.followers) == (Role.LEADER, 1)
    assert futures[0].result(30) == 1


def test_a_merger_with_a_pool_is_pickled_without_it(merger):
    merger.submit("key", give, 1).result(30)
    assert pickle.loads(pickle.dumps(merger)).execute("key", give, 2) == 2
