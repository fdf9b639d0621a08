"""ConcurrentMap: the five methods, and several threads at once."""

from __future__ import annotations

from typing import Any

import gevent
import pytest

from gws_gevent import ConcurrentMap
from tests.test_threads import hold_the_hub


@pytest.mark.parametrize("shards", [1, 16, 1000])
def test_load_store_delete_len(shards: int) -> None:
    found: ConcurrentMap[Any, Any] = ConcurrentMap(shards)
    assert found.load("a") is None
    assert found.load("a", "default") == "default"
    found.store("a", 1)
    found.store("a", 2)
    found.store(("b", 3), None)
    assert (found.load("a"), found.load(("b", 3), "default")) == (2, None)
    assert (len(found), found.len()) == (2, 2)
    assert "a" in found
    assert found.delete("a")
    assert not found.delete("a")
    assert "a" not in found
    assert len(found) == 1


def test_range_calls_for_each_until_it_is_told_to_stop() -> None:
    found: ConcurrentMap[int, str] = ConcurrentMap(4)
    for number in range(100):
        found.store(number, str(number))
    seen: dict[int, str] = {}
    found.range(lambda key, value: seen.update({key: value}))
    assert seen == {number: str(number) for number in range(100)}
    calls: list[int] = []

    def three(key: int, value: str) -> bool:
        calls.append(key)
        return len(calls) < 3

    found.range(three)
    assert len(calls) == 3


def test_range_may_change_the_map_and_block() -> None:
    found: ConcurrentMap[int, int] = ConcurrentMap(4)
    for number in range(50):
        found.store(number, number)

    def move(key: int, value: int) -> None:
        gevent.sleep(0)
        found.delete(key)
        found.store(key + 1000, value)

    found.range(move)
    keys: set[int] = set()
    found.range(lambda key, value: keys.add(key))
    assert len(found) == 50
    assert min(keys) >= 1000


@pytest.mark.parametrize("shards", [0, -1, 1.5, True, None])
def test_a_wrong_number_of_shards(shards: Any) -> None:
    with pytest.raises(ValueError, match="shards"):
        ConcurrentMap(shards)


def test_a_key_that_cannot_be_hashed() -> None:
    with pytest.raises(TypeError):
        ConcurrentMap[Any, Any]().store([], 1)


def test_several_threads_at_once() -> None:
    found: ConcurrentMap[tuple[int, int], int] = ConcurrentMap(3)

    def work(name: int) -> int:
        for number in range(500):
            found.store((name, number), number)
            if number % 2:
                assert found.delete((name, number))
            found.range(lambda key, value: False)
        return len(found)

    pool = gevent.get_hub().threadpool
    threads = [pool.spawn(work, name) for name in range(4)]
    for thread in threads:
        assert thread.get(timeout=20) >= 250
    assert len(found) == 1000
    assert all(found.load((name, number)) == number for name in range(4) for number in range(0, 500, 2))


def test_another_thread_goes_on_while_the_hub_is_held_in_a_range() -> None:
    found: ConcurrentMap[int, int] = ConcurrentMap(1)
    found.store(1, 1)
    found.range(lambda key, value: hold_the_hub(lambda: found.store(2, 2)))
    assert len(found) == 2
