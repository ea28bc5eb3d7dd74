"""Contract: options, views, names, pickling, and the end of a Merger."""

from __future__ import annotations

import copy
import pickle
from fractions import Fraction

import pytest
from crew import wait_for_followers, wait_until

import uniflight_mp
from uniflight_mp import (
    FlightTimeout,
    Limits,
    Merger,
    MsgpackCodec,
    PerHost,
    RawCodec,
    Role,
    errors,
)


def never():
    raise AssertionError("the function of a follower was called")


def give(value):
    return value


# ---- options ----------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["timeout", "lease"])
@pytest.mark.parametrize("value", [float("nan"), -1, -0.001, float("-inf")])
def test_seconds_below_zero_or_nan_are_refused(merger, table_name, option, value):
    for make in (lambda **o: Merger(table_name, **o), merger.with_options):
        with pytest.raises(ValueError, match=f"{option} must be 0 or more seconds, not"):
            make(**{option: value})


@pytest.mark.parametrize("option", ["timeout", "lease"])
@pytest.mark.parametrize("value", ["1", True, [1], Fraction(1)])
def test_seconds_of_another_type_are_refused(merger, table_name, option, value):
    for make in (lambda **o: Merger(table_name, **o), merger.with_options):
        with pytest.raises(TypeError, match=f"{option} must be a number of seconds or None, not"):
            make(**{option: value})


@pytest.mark.parametrize("value", [None, 0, 0.0, 1, 1e-12, 1e300, float("inf"), 10**400])
def test_any_number_of_seconds_from_zero_on_will_do(merger, value):
    view = merger.with_options(timeout=value, lease=value)
    assert view.execute("key", give, 1) == 1


@pytest.mark.parametrize("value", ["return", "", None, 1, ["raise"], True])
def test_any_other_on_timeout_is_refused(merger, table_name, value):
    for make in (lambda **o: Merger(table_name, **o), merger.with_options):
        with pytest.raises(ValueError, match="on_timeout must be 'raise' or 'run', not"):
            make(on_timeout=value)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"max_takeovers": -1}, ValueError, "max_takeovers must be 0 or more, not -1"),
        ({"max_takeovers": 1 << 32}, ValueError, "max_takeovers must be"),
        ({"max_takeovers": 1.5}, TypeError, "max_takeovers must be an int, not float"),
        ({"max_takeovers": None}, TypeError, "max_takeovers must be an int, not NoneType"),
        ({"strict": 1}, TypeError, "strict must be a bool, not int"),
        ({"limits": 5}, TypeError, r"limits must be Limits\(...\), not int"),
        ({"scope": "host"}, TypeError, r"scope must have a partition\(\) method"),
        ({"codec": MsgpackCodec}, TypeError, r"MsgpackCodec\(\) instead of the class"),
        ({"codec": 5}, TypeError, "no method encode and no method decode"),
        ({"cache": True}, TypeError, "cache"),
    ],
)
def test_other_bad_options_are_refused_by_name(table_name, options, error, text):
    with pytest.raises(error, match=text):
        Merger(table_name, **options)


def test_options_are_keyword_only(table_name):
    with pytest.raises(TypeError):
        Merger(table_name, PerHost())


# ---- views ------------------------------------------------------------------------------


def test_a_view_has_other_options_over_the_same_table(merger, leading):
    view = merger.with_options(timeout=0)
    leading(merger, "key")
    with pytest.raises(FlightTimeout):
        view.execute("key", never)
    assert view.with_options(on_timeout="run").execute("key", give, 1) == 1
    assert view.flights()[0].key == "key"
    assert view.stats() == merger.stats()
    assert view.name == merger.name


def test_a_view_keeps_what_was_not_given(table_name, leading):
    first = Merger(table_name, timeout=0, on_timeout="run", codec=RawCodec(), strict=True)
    view = first.with_options(lease=5)
    leading(first, "key")
    assert view.flight("key", give, 1).role is Role.SOLO
    with pytest.raises(FlightTimeout):
        view.with_options(on_timeout="raise").execute("key", never)
    with pytest.raises(uniflight_mp.ResultNotShareable):
        view.execute("other", give, 1)
    assert view.with_options(strict=False).execute("other", give, 1) == 1


def test_the_original_is_not_changed_by_its_views(merger, hands, leading, followed):
    merger.with_options(timeout=0, strict=True, on_timeout="run")
    leader = leading(merger, "key")
    call = hands.start(merger.flight, "key", never)
    followed(merger)
    leader.finish(1)
    assert call.result().value == 1
    assert merger.execute("key", object) is not None


def test_views_can_be_given_only_per_call_options(merger):
    for option in ("max_takeovers", "codec", "limits", "name"):
        with pytest.raises(TypeError, match=option):
            merger.with_options(**{option: 1})


def test_views_are_closed_each_by_itself(merger):
    assert merger.submit("key", give, 0).result() == 0
    view = merger.with_options(timeout=1)
    assert view.submit("key", give, 1).result() == 1
    view.close()
    assert merger.execute("key", give, 1) == 1
    assert merger.submit("key", give, 2).result() == 2
    other = merger.with_options(timeout=1)
    merger.close()
    assert other.execute("key", give, 3) == 3
    assert other.submit("key", give, 4).result() == 4
    other.close()


# ---- names and scopes -------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["", "a b", "a/b", "../x", "ä", "a~b", "a@b", "a\n", "x" * 65, "a\0", "*"],
)
def test_other_names_are_refused_with_the_rule(name):
    with pytest.raises(ValueError, match=r"1 to 64 characters out of A-Z, a-z, 0-9, '\.', '_'"):
        Merger(name)


@pytest.mark.parametrize("name", [None, b"prices", 5])
def test_names_of_other_types_are_refused(name):
    with pytest.raises(TypeError, match="a table's name must be a str, not"):
        Merger(name)


def test_a_name_is_required():
    with pytest.raises(TypeError):
        Merger()


def test_no_two_names_share_a_table(table_names, leading):
    base = table_names()
    for suffix in ("", ".", "-", "_", ".lock", "-x", "X", "x"):
        merger = Merger(f"{base[:50]}{suffix}", limits=Limits(flights=1, waiters=1, threads=2))
        assert merger.flights() == []
        leading(merger, "key")


def test_the_longest_name_works_with_all_that_belongs_to_it(table_names):
    name = (table_names() + "x" * 64)[:64]
    with Merger(name) as merger:
        assert merger.execute("key", give, 1) == 1


# ---- pickling ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "again", [lambda m: pickle.loads(pickle.dumps(m)), copy.copy, copy.deepcopy]
)
def test_a_merger_is_pickled_by_name_with_its_options(table_name, leading, hands, followed, again):
    limits = Limits(flights=64, waiters=64, threads=64)
    merger = Merger(
        table_name,
        codec=RawCodec(),
        timeout=0,
        on_timeout="run",
        lease=4,
        max_takeovers=7,
        strict=True,
        limits=limits,
    )
    copied = again(merger)
    assert type(copied) is Merger
    assert copied._options == merger._options
    assert (copied.name, copied.scope, copied._limits) == (table_name, PerHost(), limits)
    assert type(copied._codec) is RawCodec
    leading(merger, "key")
    assert copied.flight("key", give, 1).role is Role.SOLO


def test_a_view_is_pickled_with_its_own_options(merger, processes, leading):
    leading(merger, "key")
    view = merger.with_options(timeout=0)
    assert isinstance(processes.start(view.execute, "key", never).error(), FlightTimeout)


# ---- the end ----------------------------------------------------------------------------


def test_use_after_close_says_so(merger):
    merger.close()
    merger.close()
    decorated = merger.coalesce("key")(give)
    for use in (
        lambda: merger.execute("key", never),
        lambda: merger.flight("key", never),
        lambda: merger.forget("key"),
        lambda: merger.submit("key", never).result(),
        lambda: decorated(1),
        merger.flights,
        merger.stats,
        merger.with_options(timeout=1).stats,
    ):
        with pytest.raises(RuntimeError, match="this Merger is closed"):
            use()
    assert "closed" in repr(merger)


def test_with_closes_at_the_end_also_after_an_exception(table_name):
    merger = Merger(table_name)
    with pytest.raises(ZeroDivisionError), merger as entered:
        entered.execute("key", lambda: 1 / 0)
    with pytest.raises(RuntimeError, match="closed"):
        merger.stats()


@pytest.mark.parametrize("size", [1, 100_000])
def test_calls_under_way_finish_after_close(table_name, hands, leading, followed, size):
    merger, watch = Merger(table_name), Merger(table_name)
    leader = leading(merger, "key")
    thread = hands.start(merger.flight, "key", never)
    process = hands.start(watch.flight, "key", never, where="forked")
    followed(watch, 2)
    merger.close()
    assert leader.outcome("v" * size).value == "v" * size
    assert thread.result().value == "v" * size
    assert process.result().value == "v" * size


class ClosedAtTimeout(Merger):
    """Is closed when its call has waited long enough, and is about to run alone."""

    def _timed_out(self, *args):
        self.close()
        return super()._timed_out(*args)


def test_followers_of_other_processes_finish_after_close(table_name, hands, followed, until):
    merger, watch = Merger(table_name), Merger(table_name)
    leader = hands.start(lead_with_large_result, watch, where="forked")
    until(watch.flights)
    calls = [hands.start(merger.flight, "key", give, "own") for _ in range(2)]
    followed(watch, 2)
    merger.close()
    hasty = ClosedAtTimeout(table_name, timeout=0.01, on_timeout="run")
    assert hasty.flight("key", give, "own").value == "own"
    assert [len(call.result().value) for call in calls] == [100_000] * 2
    assert leader.result() is None


def lead_with_large_result(merger):
    def function():
        wait_until(lambda: merger.stats().timeouts, what="one of three has given up")
        wait_for_followers(merger, 2)
        return "v" * 100_000

    merger.execute("key", function)


def test_the_table_stays_for_others_after_close(merger, leading):
    other = Merger(merger.name)
    leading(other, "key")
    merger.close()
    assert len(other.flights()) == 1


def test_a_function_may_close_its_merger(table_name):
    merger = Merger(table_name)

    def function():
        merger.close()
        return 1

    assert merger.execute("key", function) == 1
    with Merger(table_name) as again:
        assert again.flights() == []


# ---- what is public ---------------------------------------------------------------------


def test_everything_public_can_be_imported_from_the_package():
    names = (
        "Merger AsyncMerger PerHost PerNuma PerProcess PerCore Scope Role Outcome "
        "FlightInfo Stats Limits Codec MsgpackCodec RawCodec Coalesced"
    )
    assert set(uniflight_mp.__all__) == {*names.split(), *errors.__all__}
    for name in uniflight_mp.__all__:
        assert hasattr(uniflight_mp, name)


def test_per_host_is_the_default_scope(table_name):
    merger = Merger.per_host(table_name, timeout=0, strict=True)
    assert type(merger) is Merger
    assert merger.scope == Merger(table_name).scope == PerHost()
    assert merger._options == Merger(table_name, timeout=0, strict=True)._options


def test_the_defaults_are_those_of_the_contract():
    assert Merger.__init__.__kwdefaults__ == {
        "scope": None,
        "codec": None,
        "timeout": None,
        "on_timeout": "raise",
        "lease": None,
        "max_takeovers": 3,
        "strict": False,
        "limits": None,
    }
    assert Limits() == Limits(1024, 4096, 1024, 4096, 64 << 20)
