"""What the calls of one turn of the loop put on the wire, byte for byte."""

from __future__ import annotations

import asyncio

from tests.aio.doubles import Recording, memory_addresses, without_opaque
from tests.aio.loops import Loops


def test_gets_of_one_turn_are_one_command(run: Loops) -> None:
    async def main() -> None:
        (address,) = memory_addresses(1)
        async with Recording([address]) as client:
            await client.set("b", 2)
            client.writes[address].clear()
            assert await asyncio.gather(*map(client.get, ["a", "b", b"c", "b"])) == [None, 2, None, 2]
            assert client.writes[address] == [b"get a b c b\r\n"]

    run(main)


def test_gets_travel_in_one_write_to_each_node(run: Loops) -> None:
    async def main() -> None:
        addresses = memory_addresses(4)
        async with Recording(addresses) as client:
            keys = [f"key:{number}" for number in range(200)]
            await client.set_many({key: key for key in keys})
            for writes in client.writes.values():
                writes.clear()
            assert await asyncio.gather(*map(client.get, keys)) == keys
            assert {address: len(writes) for address, writes in client.writes.items()} == dict.fromkeys(addresses, 1)
            for address, (write,) in client.writes.items():
                owned = [key.encode() for key in keys if client.planner.address(key.encode()) == address]
                assert write == b"get " + b" ".join(owned) + b"\r\n"

    run(main)


def test_also_the_gets_that_wait_for_the_connection_travel_in_one_write(run: Loops) -> None:
    async def main() -> None:
        (address,) = memory_addresses(1)
        async with Recording([address]) as client:
            await asyncio.gather(*map(client.get, "abc"))
            assert client.writes[address] == [b"get a\r\nget b\r\nget c\r\n"]

    run(main)


def test_a_line_carries_a_hundred_keys(run: Loops) -> None:
    async def main() -> None:
        (address,) = memory_addresses(1)
        async with Recording([address]) as client:
            keys = [b"%d" % number for number in range(250)]
            await client.set_many({key: int(key) for key in keys})
            client.writes[address].clear()
            assert await asyncio.gather(*map(client.get, keys)) == list(range(250))
            lines = [b"get " + b" ".join(keys[start : start + 100]) + b"\r\n" for start in (0, 100, 200)]
            assert client.writes[address] == [b"".join(lines)]

    run(main)


def test_commands_of_one_turn_are_one_write_in_their_order(run: Loops) -> None:
    async def main() -> None:
        (address,) = memory_addresses(1)
        async with Recording([address]) as client:
            await client.set("n", 1)
            client.writes[address].clear()
            results = await asyncio.gather(
                client.set("k", b"v"),
                client.get("k"),
                client.set("q", b"quiet", noreply=True),
                client.incr("n", 4),
                client.touch("n", 60, noreply=True),
                client.get("q"),
                client.get("z"),
                client.get_many(["k", "n"]),
                client.delete("k"),
                client.set("z", b"e", noreply=True),
                client.gets("absent"),
            )
            assert results == [True, b"v", True, 5, True, b"quiet", None, {"k": b"v", "n": 5}, True, True, (None, None)]
            (write,) = client.writes[address]
            assert without_opaque(write) == (
                b"ms k 1 T0 F0\r\nv\r\n"
                b"get k\r\n"
                b"ms q 5 T0 F0 q\r\nquiet\r\nmn\r\n"
                b"ma n MI D4 v\r\n"
                b"mg n s f c T60 q\r\nmn\r\n"
                b"get q z\r\n"
                b"get k n\r\n"
                b"md k\r\n"
                b"ms z 1 T0 F0 q\r\ne\r\nmn\r\n"
                b"gets absent\r\n"
            )

    run(main)


def test_a_call_to_several_nodes_does_not_wait_for_the_end_of_the_turn(run: Loops) -> None:
    async def main() -> None:
        addresses = memory_addresses(2)
        async with Recording(addresses) as client:
            keys = [f"key:{number}" for number in range(20)]
            await client.get_many(keys)
            for writes in client.writes.values():
                writes.clear()
            calls = [asyncio.create_task(client.get_many(keys)) for _ in range(3)]
            await asyncio.sleep(0)
            assert {address: len(writes) for address, writes in client.writes.items()} == dict.fromkeys(addresses, 1)
            assert await asyncio.gather(*calls) == [{}, {}, {}]
            # those that came while it was under way travel together
            assert {address: len(writes) for address, writes in client.writes.items()} == dict.fromkeys(addresses, 2)

    run(main)


def test_a_later_turn_is_a_write_of_its_own(run: Loops) -> None:
    async def main() -> None:
        (address,) = memory_addresses(1)
        async with Recording([address]) as client:
            await client.get("a")
            client.writes[address].clear()
            first = asyncio.create_task(client.get("a"))
            await asyncio.sleep(0)
            await asyncio.gather(client.get("b"), first)
            assert client.writes[address] == [b"get a\r\n", b"get b\r\n"]

    run(main)
