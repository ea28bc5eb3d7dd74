"""PerNuma on real nodes: 0 and 1 have two CPUs each, 2 has memory alone; see ``machine``."""

from __future__ import annotations

import re
from typing import Any

import pytest
from machine import CPUS, SECONDS, Missing, observe

# The machine runs in the first test's time. The watchdog of the session comes later.
pytestmark = pytest.mark.timeout(SECONDS + 60)

NODES = ("0", "1")


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """What happened in the machine, which runs once for all tests."""
    try:
        found, console = observe()
    except Missing as error:
        pytest.fail(f"the machine cannot be run: {error}", pytrace=False)
    print(console)
    return found


def node_of(cpu: int) -> str:
    return next(str(node) for node, cpus in CPUS.items() if cpu in cpus)


def assert_on_their_nodes(tables: dict[str, Any]) -> None:
    """All mappings of both tables, as numa_maps shows them, are bound to the table's node."""
    for node in NODES:
        table = tables[f"@PerNuma@{node}"]
        assert len(table["touched"]) == 1
        assert len(table["all"]) == 2
        for line in table["touched"] + table["all"]:
            assert line.split()[1] == f"bind:{node}", line
        pages = [re.findall(r"\bN(\d+)=(\d+)", line) for line in table["all"]]
        assert [(node, str(table["pages"]))] in pages
        assert {where for line in pages for where, _ in line} == {node}


def test_the_machine_has_two_nodes_with_cpus_and_a_third_with_memory(report):
    assert report["memory"] == "0-2"
    assert [cpu for cpu, _, _ in report["partitions"]] == [0, 1, 2, 3]


def test_the_partition_of_a_caller_is_the_node_of_its_cpu(report):
    for cpu, partition, node in report["partitions"]:
        assert (partition, node) == (node_of(cpu), f"node{node_of(cpu)}")


def test_threads_on_two_nodes_have_a_table_each_made_when_it_is_needed(report):
    assert report["tables"]["first"] == ["@PerNuma@0"]
    assert list(report["tables"]["both"]) == ["@PerNuma@0", "@PerNuma@1"]


def test_all_pages_of_a_table_are_on_its_node(report):
    assert_on_their_nodes(report["tables"]["both"])


def test_a_table_is_on_its_node_even_if_its_maker_takes_memory_from_another(report):
    assert_on_their_nodes(report["tables_of_bound"]["both"])


def test_processes_coalesce_with_those_on_their_node_and_no_others(report):
    one_key = report["one_key"]
    calls = {int(cpu): call for cpu, call in one_key["calls"].items()}
    for cpus in filter(None, CPUS.values()):
        on_node = [calls[cpu] for cpu in cpus]
        assert sorted(call["role"] for call in on_node) == ["follower", "leader"]
        leader = next(call["pid"] for call in on_node if call["role"] == "leader")
        assert [call["value"] for call in on_node] == [leader, leader]
        assert [leader, 1] in one_key["flights"]
    assert one_key["executions"] == 2
    assert not any(one_key["solo"].values())


def test_a_leader_that_is_moved_to_another_node_ends_its_flight_where_it_began(report):
    migration = report["migration"]
    leader = migration["leader"]
    assert (leader["role"], leader["followers"]) == ("leader", 2)
    late = migration["follower_that_came_later"]
    assert (late["role"], late["value"]) == ("follower", leader["pid"])
    assert migration["left"] == 0


def test_a_call_that_begins_after_the_move_is_on_the_new_node(report):
    migration = report["migration"]
    inside = migration["leader"]["inside"]
    assert inside["partition"] == "1"
    for call in (inside["call"], migration["on_its_new_node"]):
        assert (call["role"], call["value"]) == ("leader", call["pid"])


def test_a_follower_that_is_moved_to_another_node_gets_its_leaders_value(report):
    migration = report["migration"]
    follower = migration["follower_moved_too"]
    assert (follower["role"], follower["value"]) == ("follower", migration["leader"]["pid"])
