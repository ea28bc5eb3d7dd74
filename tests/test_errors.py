"""The exceptions: fields, texts that help, pickling, keys that fight back."""

from __future__ import annotations

import copy
import pickle

import pytest

from uniflight_mp import errors
from uniflight_mp.errors import (
    FlightTimeout,
    LeaderDied,
    LeaderPanicked,
    ResultNotDecodable,
    ResultNotShareable,
    ResultTooLarge,
    TableCorrupt,
    TableMismatch,
    TableUnavailable,
    UniflightError,
)

CASES = [
    (
        LeaderPanicked,
        {
            "message": "no such sku",
            "exc_type": "shop.NotFound",
            "traceback": "  File …",
            "leader_pid": 41,
        },
        ["41", "shop.NotFound", "no such sku", ".traceback", "register"],
    ),
    (
        LeaderDied,
        {"key": ("sku", 42), "takeovers": 3, "leader_pid": 41},
        ["('sku', 42)", "3 takeovers", "41", "OOM", "max_takeovers"],
    ),
    (
        FlightTimeout,
        {"key": "sku:42", "timeout": 1.5, "waited": 1.5004},
        ["'sku:42'", "1.5 s", "1.500 s", 'on_timeout="run"'],
    ),
    (
        ResultNotShareable,
        {"type_name": "shop.Owner", "path": "$.rows[3].owner", "detail": "it is odd"},
        ["shop.Owner", "$.rows[3].owner", "it is odd", "register", "strict"],
    ),
    (
        ResultTooLarge,
        {"type_name": "shop.Page", "path": "$", "detail": "it takes 9 bytes"},
        ["shop.Page", "$", "it takes 9 bytes", "Limits.result_bytes", "strict"],
    ),
    (
        ResultNotDecodable,
        {"type_name": "result", "path": "$", "detail": "Price is not registered here"},
        ["Price is not registered here", "every process", "strict"],
    ),
    (
        TableUnavailable,
        {"reason": "table_full", "detail": "raise limits.flights", "table": "prices"},
        ["table_full", "raise limits.flights", "'prices'"],
    ),
    (
        TableMismatch,
        {"table": "prices", "found": "layout 1", "expected": "layout 2"},
        ["'prices'", "layout 1", "layout 2", "destroy prices"],
    ),
    (
        TableCorrupt,
        {"table": "prices", "detail": "slot 3 has no group"},
        ["'prices'", "slot 3 has no group", "destroy prices"],
    ),
]
each = pytest.mark.parametrize(
    ("cls", "fields", "words"), CASES, ids=lambda c: getattr(c, "__name__", "")
)


@each
def test_fields_are_attributes_whether_given_by_name_or_by_position(cls, fields, words):
    for error in (cls(**fields), cls(*fields.values())):
        assert {name: getattr(error, name) for name in fields} == fields
        assert error.args == tuple(fields.values())


@each
def test_text_says_what_was_wrong_and_what_to_do(cls, fields, words):
    text = str(cls(**fields))
    assert [word for word in words if word not in text] == []
    assert text.isprintable()


@each
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_round_trip_keeps_class_fields_and_text(cls, fields, words, protocol):
    error = cls(**fields)
    error.add = "an attribute somebody set"
    again = pickle.loads(pickle.dumps(error, protocol))
    assert type(again) is cls
    assert vars(again) == vars(error)
    assert (again.args, str(again), repr(again)) == (error.args, str(error), repr(error))


@each
def test_copies_are_equal_in_fields_and_text(cls, fields, words):
    error = cls(**fields)
    for again in (copy.copy(error), copy.deepcopy(error)):
        assert type(again) is cls
        assert vars(again) == vars(error)
        assert str(again) == str(error)


@each
def test_every_error_can_be_caught_as_uniflight_error(cls, fields, words):
    with pytest.raises(UniflightError):
        raise cls(**fields)


def test_each_problem_with_a_result_has_its_own_advice():
    assert "Limits.result_bytes" in str(ResultTooLarge("bytes", "$", "it takes 9 bytes"))
    assert "egister the class" not in str(ResultTooLarge("bytes", "$"))
    undecodable = str(ResultNotDecodable("result", "$", "Price is not registered here"))
    assert undecodable.startswith("the leader's result cannot be decoded here: Price is not")
    assert "in every process" in undecodable


def test_a_flight_timeout_is_a_timeout_error_without_an_errno():
    error = FlightTimeout("k", 1.0, 1.1)
    assert isinstance(error, TimeoutError)
    assert (error.errno, error.filename) == (None, None)


def test_optional_fields_may_be_left_out():
    assert str(ResultNotShareable("set", "$")).count("(") == 0
    assert "doctor" in str(TableUnavailable("lock_busy"))


def test_everything_public_is_listed():
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, UniflightError)
    }
    assert set(errors.__all__) == defined
    assert {cls.__name__ for cls, _, _ in CASES} == defined - {"UniflightError"}


class Hostile:
    def __init__(self, act):
        self.act = act

    def __repr__(self):
        return self.act()


class EvilStr(str):
    def __getitem__(self, item):
        raise RuntimeError("indexed")

    def __len__(self):
        raise RuntimeError("measured")


def _recurse():
    return _recurse()


def _exit():
    raise SystemExit(3)


HOSTILE = {
    "raises": Hostile(lambda: 1 / 0),
    "exits": Hostile(_exit),
    "recurses": Hostile(_recurse),
    "no_str": Hostile(lambda: 7),
    "huge": Hostile(lambda: "x" * 10_000_000),
    "evil_str": Hostile(lambda: EvilStr("x" * 1000)),
    "escapes": Hostile(lambda: "\x1b[31m\n" * 100),
    "surrogate": Hostile(lambda: "\ud800"),
    "in_tuple": (1, Hostile(_exit)),
    "long_str": "k" * 10_000_000,
    "long_bytes": b"k" * 10_000_000,
    "long_int": 1 << 10_000_000,
    "wide_tuple": tuple(range(1_000_000)),
    "deep_tuple": eval("(" * 90 + "1" + ",)" * 90),
}


@pytest.mark.parametrize("key", HOSTILE.values(), ids=HOSTILE)
def test_no_key_breaks_a_text_or_makes_it_long(key):
    for error in (LeaderDied(key, 3, 41), FlightTimeout(key, 1.0, 1.0)):
        for text in (str(error), repr(error)):
            assert type(text) is str
            assert len(text) < 600
            assert text.isprintable()


def test_ctrl_c_during_a_repr_is_not_swallowed():
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        str(LeaderDied(Hostile(interrupt), 0, 1))


def test_a_long_message_is_shortened_in_the_text_only():
    error = LeaderPanicked("m" * 5000, "shop.NotFound", "", 1)
    assert len(str(error)) < 1000
    assert error.message == "m" * 5000
