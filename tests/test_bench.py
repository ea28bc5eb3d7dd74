"""What the benchmarks keep, and how they compare it; the figures themselves are no tests."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from bench import saved
from bench.ratios import change
from bench.report import Row, row

MICROSECOND = 1000


@pytest.fixture(autouse=True)
def _root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved, "ROOT", tmp_path)


def noisy(median: float, seed: int, count: int = 400) -> list[float]:
    """Return samples with a tail, as wake-ups have."""
    chance = random.Random(seed)
    return [median * chance.lognormvariate(0, 0.3) * MICROSECOND for _ in range(count)]


def verdict(before: list[float], now: list[float]) -> str:
    """Tell what is said of a row that had the ones and has the others."""
    one, other = (
        saved.save(name, "figure", [row("it", "µs", samples)], {"cpu_count": 2})
        for name, samples in (("before", before), ("now", now))
    )
    return change(one.get_benchmark("it"), other.get_benchmark("it")).verdict


def show(line: Row) -> tuple[object, ...]:
    """Return what the table shows of a row, to four digits."""
    numbers = (line.p50, line.p95, line.p99, line.floor)
    return line.what, line.unit, line.n, line.target, *(f"{number:.4g}" for number in numbers)


def test_rows_come_back_as_they_were_saved() -> None:
    floor = row("floor", "µs", noisy(5, 1))
    lines = [
        row("a wake-up", "µs", noisy(25, 2), floor, "<= 25"),
        row("memory", "KiB", [4096.0, 8192.0, 8192.0], floor),
        row("nothing runs", "%", [0.0, 0.0], floor),
    ]
    saved.save("some", "figure", lines, {"cpu_count": 2})
    suite = saved.load("some", "figure")
    assert suite is not None
    assert list(map(show, saved.rows(suite))) == list(map(show, lines))
    assert suite.get_metadata()["cpu_count"] == 2


def test_what_was_never_saved_is_not_there() -> None:
    assert saved.load("some", "figure") is None
    assert saved.figures("some") == []


def test_a_saved_result_says_what_machine_it_is_of() -> None:
    assert {"cpu_count", "platform", "python_version", "bench_libc"} <= saved.machine().keys()


def test_the_same_distribution_twice_is_within_noise() -> None:
    assert verdict(noisy(25, 1), noisy(25, 2)) == "within noise"


def test_a_shifted_distribution_is_more_than_noise() -> None:
    assert verdict(noisy(25, 1), noisy(35, 2)) == "higher"
    assert verdict(noisy(25, 1), noisy(18, 2)) == "lower"


def test_a_few_samples_are_not_judged() -> None:
    assert verdict(noisy(25, 1, 3), noisy(50, 2, 3)) == "too few samples"
