"""PerNuma on real nodes: 0 and 1 have two CPUs each, 2 has memory alone; see ``machine``."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from machine import CPUS, SECONDS, Missing, observe

# The machine runs in the first test's time. The watchdog of the session comes later.
pytestmark = pytest.mark.timeout(SECONDS + 60)

NODES = ("0", "1")


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """What each scene saw in the machine, which runs once for all tests."""
    try:
        found, console = observe()
    except Missing as error:
        pytest.fail(f"the machine cannot be run: {error}", pytrace=False)
    print(console)
    return found


@pytest.fixture
def seen(report) -> Callable[[str], Any]:
    """``seen(scene)``: what a scene of ``inside.py`` saw, if it did not fail."""

    def get(scene: str) -> Any:
        assert "error" not in report[scene], report[scene]["error"]
        return report[scene]["saw"]

    return get


def node_of(cpu: int) -> str:
    return next(str(node) for node, cpus in CPUS.items() if cpu in cpus)


def assert_on_their_nodes(tables: dict[str, Any]) -> None:
    """Assert what numa_maps says of both tables: bound to the node, all pages there."""
    for node in NODES:
        table = tables[f"@PerNuma@{node}"]
        assert len(table["touched"]) == 1
        assert len(table["all"]) == 2
        for line in table["touched"] + table["all"]:
            assert line.split()[1] == f"prefer:{node}", line
        pages = [re.findall(r"\bN(\d+)=(\d+)", line) for line in table["all"]]
        assert [(node, str(table["pages"]))] in pages
        assert {where for line in pages for where, _ in line} == {node}


def test_the_machine_has_two_nodes_with_cpus_and_a_third_with_memory(seen):
    assert seen("nodes_with_memory") == "0-2"
    assert [cpu for cpu, _, _ in seen("partitions")] == [0, 1, 2, 3]


def test_the_partition_of_a_caller_is_the_node_of_its_cpu(seen):
    for cpu, partition, node in seen("partitions"):
        assert (partition, node) == (node_of(cpu), f"node{node_of(cpu)}")


def test_threads_on_two_nodes_have_a_table_each_made_when_it_is_needed(seen):
    assert seen("tables_of_two_threads")["first"] == ["@PerNuma@0"]
    assert list(seen("tables_of_two_threads")["both"]) == ["@PerNuma@0", "@PerNuma@1"]


def test_all_pages_of_a_table_are_on_its_node(seen):
    assert_on_their_nodes(seen("tables_of_two_threads")["both"])


def test_a_table_is_on_its_node_even_if_its_maker_takes_memory_from_another(seen):
    assert_on_their_nodes(seen("tables_of_a_process_bound_elsewhere")["both"])


def test_processes_coalesce_with_those_on_their_node_and_no_others(seen):
    one_key = seen("one_key_on_all_cpus")
    calls = {int(cpu): call for cpu, call in one_key["calls"].items()}
    for cpus in filter(None, CPUS.values()):
        on_node = [calls[cpu] for cpu in cpus]
        assert sorted(call["role"] for call in on_node) == ["follower", "leader"]
        leader = next(call["pid"] for call in on_node if call["role"] == "leader")
        assert [call["value"] for call in on_node] == [leader, leader]
        assert [leader, 1] in one_key["flights"]
    assert one_key["executions"] == 2
    assert not any(one_key["solo"].values())


def test_a_leader_that_is_moved_to_another_node_ends_its_flight_where_it_began(seen):
    migration = seen("migration")
    leader = migration["leader"]
    assert (leader["role"], leader["followers"]) == ("leader", 2)
    late = migration["follower_that_came_later"]
    assert (late["role"], late["value"]) == ("follower", leader["pid"])
    assert migration["left"] == 0


def test_a_call_that_begins_after_the_move_is_on_the_new_node(seen):
    migration = seen("migration")
    inside = migration["leader"]["inside"]
    assert inside["partition"] == "1"
    for call in (inside["call"], migration["on_its_new_node"]):
        assert (call["role"], call["value"]) == ("leader", call["pid"])


def test_a_follower_that_is_moved_to_another_node_gets_its_leaders_value(seen):
    migration = seen("migration")
    follower = migration["follower_moved_too"]
    assert (follower["role"], follower["value"]) == ("follower", migration["leader"]["pid"])
