"""Contract: results that cannot be shared exactly, or are large. Nobody gets an altered value."""

from __future__ import annotations

import dataclasses
import os
import re
import warnings

import pytest

from uniflight_mp import Limits, Merger, MsgpackCodec, RawCodec, ResultNotShareable, Role
from uniflight_mp.errors import ResultNotDecodable

SMALL = Limits(flights=64, waiters=64, threads=64, inline_bytes=4096, result_bytes=100_000)


def never():
    raise AssertionError("the function of a follower was called")


def give(value):
    return value


class Opaque:
    """No codec knows it."""


class Text(str):
    """Would come back as a plain str."""


@dataclasses.dataclass
class Price:
    amount: int
    note: object = None


def extra_segments(merger):
    part = merger._segment.segment + "~r"
    return [name for name in os.listdir("/dev/shm") if name.startswith(part)]


def flight_and_warnings(merger, key, function, *args):
    """Call in this process; return the outcome and the texts of what was warned."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        outcome = merger.flight(key, function, *args)
    return outcome, [str(warning.message) for warning in caught]


def raw_flight(merger, key, function, *args):
    """Call in this process and tell about its value what is short enough to send back."""
    outcome = merger.flight(key, function, *args)
    return outcome.role, len(outcome.value), outcome.value[:1]


# ---- not shareable ----------------------------------------------------------------------

UNSHAREABLE = {
    "$": Opaque(),
    "$.rows[3].owner": {"rows": [0, 1, 2, {"owner": Opaque()}]},
    "$[0]": (Text("x"),),
}


@pytest.mark.parametrize("path", UNSHAREABLE)
def test_of_an_unshareable_result_the_leader_keeps_its_own_and_processes_run_themselves(
    merger, processes, leading, followed, path
):
    value = UNSHAREABLE[path]
    leader = leading(merger, "key")
    calls = [processes.start(merger.flight, "key", give, n) for n in range(2)]
    thread = processes.start(merger.flight, "key", never, where="threads")
    followed(merger, 3)
    with pytest.warns(RuntimeWarning, match=re.escape(path)):
        assert leader.outcome(value).value is value
    assert thread.result().value is value
    outcomes = [call.result() for call in calls]
    assert [outcome.value for outcome in outcomes] == [0, 1]
    assert {outcome.role for outcome in outcomes} == {Role.SOLO}
    assert [outcome.leader_pid for outcome in outcomes] == [call.pid for call in calls]
    assert merger.stats().solo["not_shareable"] == 2


class Stop(BaseException):
    """Nothing that anybody catches by accident."""


def of_a_class_whose(method, error):
    """Return an object whose class raises when it is looked up among the types of a codec."""

    def answer(cls, *_):
        raise error

    body = {"__hash__": lambda cls: hash(list), method: answer}
    return type("Meta", (type,), body)("Odd", (), {})()


@pytest.mark.parametrize("method", ["__hash__", "__eq__"])
def test_a_result_whose_class_raises_when_it_is_looked_up_is_not_shareable(
    merger, processes, leading, followed, method
):
    value = [of_a_class_whose(method, ZeroDivisionError("no"))]
    leader = leading(merger, "key")
    call = processes.start(merger.flight, "key", give, 1)
    followed(merger)
    with pytest.warns(RuntimeWarning, match=r"ZeroDivisionError\('no'\)"):
        assert leader.outcome(value).value is value
    assert call.result().role is Role.SOLO
    assert merger.stats().solo["not_shareable"] == 1


@pytest.mark.parametrize("method", ["__hash__", "__eq__"])
@pytest.mark.parametrize("strict", [True, False])
def test_a_leader_that_is_interrupted_while_it_encodes_is_replaced(
    merger, processes, leading, followed, method, strict
):
    leader = leading(merger.with_options(strict=strict), "key")
    call = processes.start(merger.flight, "key", give, 1)
    followed(merger)
    assert type(leader.finish(of_a_class_whose(method, Stop())).error()) is Stop
    outcome = call.result()
    assert (outcome.value, outcome.role, outcome.takeovers) == (1, Role.LEADER, 1)
    assert merger.flight("key", give, 2).role is Role.LEADER


@pytest.mark.shared
def test_where_warnings_are_errors_results_are_the_same(
    merger, processes, leading, followed, monkeypatch
):
    shown = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: shown.append(str(message)))
    leader = leading(merger, "key")
    call = processes.start(merger.flight, "key", give, "own")
    followed(merger)
    value = Opaque()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert leader.outcome(value).value is value
    assert call.result().value == "own"
    # Others warn too: from Python 3.12 on, of the fork of a process with threads.
    assert len([text for text in shown if "Opaque" in text]) == 1


@pytest.mark.shared
def test_the_leader_warns_once_about_a_type_and_path(merger, hands, leading, followed):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for value in [Opaque(), Opaque(), [Opaque()]]:
            leader = leading(merger, "key")
            call = hands.start(merger.flight, "key", give, 1, where="forked")
            followed(merger)
            leader.finish(value)
            call.result()
    texts = [str(warning.message) for warning in caught if "Opaque" in str(warning.message)]
    assert len(texts) == 2
    assert all("followers run the function themselves" in text for text in texts)


def test_strict_raises_in_the_leader_without_any_follower(merger):
    strict = merger.with_options(strict=True)
    with pytest.raises(ResultNotShareable) as info:
        strict.execute("key", give, {"rows": [0, 1, 2, {"owner": Opaque()}]})
    assert info.value.path == "$.rows[3].owner"
    assert info.value.type_name.endswith("Opaque")
    assert strict.execute("key", give, 1) == 1


def test_strict_raises_in_the_leader_and_in_strict_followers(merger, processes, leading, followed):
    strict = merger.with_options(strict=True)
    leader = leading(strict, "key")
    call = processes.start(strict.flight, "key", never)
    relaxed = processes.start(merger.flight, "key", give, 1)
    followed(merger, 2)
    error = leader.finish([Opaque()]).error()
    assert (type(error), error.path) == (ResultNotShareable, "$[0]")
    error = call.error()
    assert (type(error), error.path) == (ResultNotShareable, "$[0]")
    assert error.type_name.endswith("Opaque")
    assert relaxed.result().role is Role.SOLO
    assert merger.stats().failures == 0


@pytest.mark.shared
def test_a_strict_follower_raises_where_its_leader_was_not_strict(merger, hands, leading, followed):
    leader = leading(merger, "key")
    call = hands.start(merger.with_options(strict=True).flight, "key", never, where="forked")
    followed(merger)
    with pytest.warns(RuntimeWarning):
        leader.finish([Opaque()])
    assert call.error().path == "$[0]"


# ---- undecodable ------------------------------------------------------------------------


def deploy(table_name, *registered, **options):
    codec = MsgpackCodec()
    for cls in registered:
        codec.register(cls)
    return Merger(table_name, codec=codec, **options)


@pytest.mark.shared
def test_a_follower_that_does_not_know_a_class_runs_the_function_itself(
    table_name, hands, leading, followed
):
    new, old = deploy(table_name, Price), deploy(table_name)
    leader = leading(new, "key")
    stale = hands.start(flight_and_warnings, old, "key", give, "own", where="spawned")
    fresh = hands.start(new.flight, "key", never, where="spawned")
    thread = hands.start(old.flight, "key", never)
    followed(new, 3)
    value = Price(42)
    assert leader.outcome(value).value is value
    assert fresh.result().value == value
    assert thread.result().value is value
    outcome, texts = stale.result()
    assert (outcome.value, outcome.role) == ("own", Role.SOLO)
    assert len(texts) == 1
    assert "Price" in texts[0]
    assert old.stats().solo["not_decodable"] == 1


@pytest.mark.shared
def test_a_strict_follower_that_cannot_decode_raises(table_name, hands, leading, followed):
    new, old = deploy(table_name, Price), deploy(table_name, strict=True)
    leader = leading(new, "key")
    call = hands.start(old.flight, "key", never, where="spawned")
    followed(new)
    leader.finish(Price(42))
    error = call.error()
    assert type(error) is ResultNotDecodable
    assert isinstance(error, ResultNotShareable)
    assert "Price" in str(error)


class Unspeakable(Exception):
    def __str__(self):
        raise LookupError


class Refusing(RawCodec):
    def decode(self, payload):
        raise Unspeakable


def test_a_codec_whose_error_cannot_be_shown_cannot_decode_all_the_same(
    table_name, processes, leading, followed
):
    merger = Merger(table_name, codec=Refusing())
    leader = leading(merger, "key")
    relaxed = processes.start(flight_and_warnings, merger, "key", give, "own")
    strict = processes.start(merger.with_options(strict=True).flight, "key", never)
    followed(merger, 2)
    leader.finish(b"value")
    outcome, texts = relaxed.result()
    assert (outcome.value, outcome.role) == ("own", Role.SOLO)
    assert "Unspeakable" in texts[0]
    assert type(strict.error()) is ResultNotDecodable


def test_registered_classes_travel_with_their_types(table_name, processes, leading, followed):
    merger = deploy(table_name, Price)
    leader = leading(merger, "key")
    call = processes.start(merger.flight, "key", never)
    followed(merger)
    leader.finish([Price(42, (1,))])
    assert call.result().value == [Price(42, (1,))]


# ---- sizes ------------------------------------------------------------------------------


def shared(merger, hands, leading, followed, value):
    """Lead with two process followers; return the leader's outcome and the followers' calls."""
    leader = leading(merger, "key")
    calls = [hands.start(raw_flight, merger, "key", give, b"own", where="forked") for _ in range(2)]
    followed(merger, 2)
    return leader.outcome(value), [call.result() for call in calls]


@pytest.mark.shared
@pytest.mark.parametrize("size", [0, 1, 4095, 4096])
def test_a_result_of_up_to_inline_bytes_stays_in_the_table(
    table_name, hands, leading, followed, size, monkeypatch
):
    monkeypatch.delattr("uniflight_mp.base.write_extra")
    merger = Merger(table_name, codec=RawCodec(), limits=SMALL)
    outcome, got = shared(merger, hands, leading, followed, b"v" * size)
    assert len(outcome.value) == size
    assert got == [(Role.FOLLOWER, size, b"v"[:size])] * 2
    assert merger.stats().published_bytes == size


@pytest.mark.shared
@pytest.mark.parametrize("size", [4097, 99_999, 100_000])
@pytest.mark.parametrize("codec", [RawCodec(), MsgpackCodec()], ids=["raw", "msgpack"])
def test_a_larger_result_takes_an_extra_segment_that_vanishes(
    table_name, hands, leading, followed, until, codec, size
):
    merger = Merger(table_name, codec=codec, limits=SMALL)
    leader = leading(merger, "key")
    stopped = hands.start(raw_flight, merger, "key", give, b"own", where="forked")
    other = hands.start(raw_flight, merger, "key", give, b"own", where="forked")
    followed(merger, 2)
    stopped.kill(19)  # SIGSTOP: it cannot fetch the result yet
    leader.finish(b"v" * size)
    assert other.result() == (Role.FOLLOWER, size, b"v")
    assert [merger.flights()[0].state, merger.flights()[0].result_bytes] == ["done", size]
    (name,) = extra_segments(merger)
    status = os.stat(f"/dev/shm/{name}")
    assert (status.st_mode & 0o7777, status.st_size) == (0o600, size)
    stopped.kill(18)
    assert stopped.result() == (Role.FOLLOWER, size, b"v")
    until(lambda: extra_segments(merger) == [])


@pytest.mark.shared
def test_a_result_over_result_bytes_is_not_shared(table_name, hands, leading, followed):
    merger = Merger(table_name, codec=RawCodec(), limits=SMALL)
    with pytest.warns(RuntimeWarning, match="100,001 encoded bytes"):
        outcome, got = shared(merger, hands, leading, followed, b"v" * 100_001)
    assert (outcome.role, len(outcome.value)) == (Role.LEADER, 100_001)
    assert got == [(Role.SOLO, 3, b"o")] * 2
    assert merger.stats().solo["too_large"] == 2
    assert merger.stats().published_bytes < 4096
    assert extra_segments(merger) == []


@pytest.mark.shared
def test_result_bytes_holds_below_inline_bytes_too(table_name, hands, leading, followed):
    limits = dataclasses.replace(SMALL, result_bytes=1000)
    merger = Merger(table_name, codec=RawCodec(), limits=limits)
    outcome, got = shared(merger, hands, leading, followed, b"v" * 1000)
    assert got == [(Role.FOLLOWER, 1000, b"v")] * 2
    with pytest.warns(RuntimeWarning, match="result_bytes"):
        outcome, got = shared(merger, hands, leading, followed, b"v" * 1001)
    assert len(outcome.value) == 1001
    assert got == [(Role.SOLO, 3, b"o")] * 2


@pytest.mark.shared
@pytest.mark.parametrize("inline_bytes", [1, 64, 256])
def test_failures_and_refusals_travel_however_small_inline_bytes_is(
    table_name, hands, leading, followed, inline_bytes
):
    limits = dataclasses.replace(SMALL, inline_bytes=inline_bytes)
    merger = Merger(table_name, limits=limits)
    leader = leading(merger, "fails")
    call = hands.start(merger.flight, "fails", never, where="forked")
    followed(merger)
    assert str(leader.finish(LookupError("x" * 400)).error()) == "x" * 400
    assert type(call.error()) is LookupError
    leader = leading(merger, "opaque")
    call = hands.start(merger.flight, "opaque", give, "own", where="forked")
    followed(merger)
    with pytest.warns(RuntimeWarning):
        assert type(leader.outcome(Opaque()).value) is Opaque
    assert call.result().value == "own"


@pytest.mark.shared
def test_strict_raises_for_a_result_over_result_bytes(table_name, hands, leading, followed):
    merger = Merger(table_name, codec=RawCodec(), limits=SMALL, strict=True)
    with pytest.raises(ResultNotShareable, match="result_bytes"):
        merger.execute("key", give, b"v" * 100_001)
    leader = leading(merger, "key")
    call = hands.start(merger.execute, "key", never, where="forked")
    followed(merger)
    assert isinstance(leader.finish(b"v" * 100_001).error(), ResultNotShareable)
    error = call.error()
    assert isinstance(error, ResultNotShareable)
    assert "100,001" in str(error)


@pytest.mark.shared
def test_the_default_limits_share_64_mib_and_no_more(merger, hands, leading, followed):
    whole = 64 << 20
    edges = [(bytes, whole), (lambda size: "v" * size, whole - 5)]  # 5: msgpack's header of a str
    for make, most in edges:
        for size, role in [(most, Role.FOLLOWER), (most + 1, Role.SOLO)]:
            leader = leading(merger, "key")
            call = hands.start(raw_flight, merger, "key", give, b"own", where="forked")
            followed(merger)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                leader.finish(make(size))
            assert call.result()[0] is role
            leader._answer = None
    assert merger.stats().solo["too_large"] == 2


class Other:
    """A codec of the user's, which gives bytes another meaning."""

    def encode(self, value):
        return value[::-1]

    def decode(self, payload):
        return bytes(payload)[::-1]


SIZES = pytest.mark.parametrize("size", [1000, 10_000], ids=["inline", "extra"])


@pytest.mark.shared
@SIZES
@pytest.mark.parametrize("codec", [Other(), MsgpackCodec(max_bytes=999)], ids=["other", "limited"])
def test_bytes_are_nobodys_who_would_not_decode_them_so(
    table_name, hands, leading, followed, codec, size
):
    merger = Merger(table_name)
    leader = leading(merger, "key")
    call = hands.start(
        raw_flight, Merger(table_name, codec=codec), "key", give, b"own", where="forked"
    )
    followed(merger)
    leader.finish(b"v" * size)
    assert call.result() == (Role.SOLO, 3, b"o")
    assert merger.stats().solo["not_decodable"] == 1
    assert extra_segments(merger) == []


@pytest.mark.shared
@SIZES
def test_bytes_are_published_as_they_are(table_name, hands, leading, followed, size):
    merger = Merger(table_name)
    _, got = shared(merger, hands, leading, followed, b"v" * size)
    assert got == [(Role.FOLLOWER, size, b"v")] * 2
    assert merger.stats().published_bytes == size


@pytest.mark.shared
@SIZES
def test_bytes_of_another_codec_go_through_it(table_name, hands, leading, followed, size):
    merger = Merger(table_name, codec=Other())
    outcome, got = shared(merger, hands, leading, followed, b"v" * (size - 1) + b"w")
    assert outcome.value[-1:] == b"w"
    assert got == [(Role.FOLLOWER, size, b"v")] * 2


@pytest.mark.shared
@SIZES
def test_max_bytes_of_the_codec_holds_for_bytes(table_name, hands, leading, followed, size):
    merger = Merger(table_name, codec=MsgpackCodec(max_bytes=size - 1))
    with pytest.warns(RuntimeWarning, match=f"more than {size - 1}"):
        _, got = shared(merger, hands, leading, followed, b"v" * size)
    assert got == [(Role.SOLO, 3, b"o")] * 2


@pytest.mark.shared
def test_limits_can_allow_more_than_64_mib(table_name, hands, leading, followed):
    merger = Merger(table_name, limits=dataclasses.replace(SMALL, result_bytes=128 << 20))
    leader = leading(merger, "key")
    call = hands.start(raw_flight, merger, "key", give, b"own", where="forked")
    followed(merger)
    leader.finish(bytes(65 << 20))
    assert call.result() == (Role.FOLLOWER, 65 << 20, b"\0")


def test_the_object_reaches_threads_however_large_it_is(table_name, hands, leading, followed):
    merger = Merger(table_name, codec=RawCodec(), limits=SMALL)
    value = b"v" * 100_001
    leader = leading(merger, "key")
    call = hands.start(merger.flight, "key", never)
    followed(merger)
    leader.finish(value)
    assert call.result().value is value


@pytest.mark.shared
def test_a_stray_file_in_the_way_of_a_large_result_costs_the_leader_nothing(
    table_name, hands, leading, followed
):
    from uniflight_mp.results import Extra

    merger = Merger(table_name, codec=RawCodec(), limits=SMALL)
    segment = merger._segment
    leader = leading(merger, "key")
    row = segment.table.flights()[0]
    stray = Extra(segment.segment, segment.table.identity[1], row[11], row[13]).name
    os.close(os.open(f"/dev/shm/{stray}", os.O_CREAT | os.O_EXCL, 0o600))
    call = hands.start(raw_flight, merger, "key", give, b"own", where="forked")
    followed(merger)
    with pytest.warns(RuntimeWarning, match="cannot be made"):
        assert len(leader.outcome(b"v" * 5000).value) == 5000
    assert call.result() == (Role.SOLO, 3, b"o")


@pytest.mark.shared
def test_what_somebody_put_in_the_place_of_a_large_result_costs_no_call(
    table_name, hands, leading, followed
):
    merger = Merger(table_name, codec=RawCodec(), limits=SMALL)
    leader = leading(merger, "key")
    call = hands.start(raw_flight, merger, "key", give, b"own", where="forked")
    followed(merger)
    call.kill(19)  # SIGSTOP: it cannot fetch the result yet
    leader.finish(b"v" * 5000)
    (name,) = extra_segments(merger)
    os.unlink(f"/dev/shm/{name}")
    os.mkdir(f"/dev/shm/{name}")
    try:
        call.kill(18)
        assert call.result() == (Role.SOLO, 3, b"o")
        assert merger._segment.table.usage()[:2] == (0, 0)
    finally:
        os.rmdir(f"/dev/shm/{name}")


@pytest.mark.shared
def test_a_large_result_that_nobody_fetches_leaves_nothing(
    table_name, hands, leading, followed, until
):
    merger = Merger(table_name, codec=RawCodec(), limits=SMALL)
    leader = leading(merger, "key")
    call = hands.start(raw_flight, merger, "key", give, b"own", where="forked")
    followed(merger)
    call.kill(19)
    leader.finish(b"v" * 5000)
    assert len(extra_segments(merger)) == 1
    call.kill(9)
    call.join()
    merger.flights()  # sweeps
    until(lambda: merger.execute("key", give, b"") == b"" and extra_segments(merger) == [])
