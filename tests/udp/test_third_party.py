"""A UDP library that knows nothing of this package runs on its transport."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asyncnet import udp
from asyncnet.udp import DatagramTransport

dns_asyncquery = pytest.importorskip("dns.asyncquery", reason="dnspython is not installed: make setup installs it")


async def test_dnspython_asks_over_the_fast_transport(monkeypatch: pytest.MonkeyPatch) -> None:
    import dns.message
    import dns.rrset

    made: list[DatagramTransport] = []
    loop = asyncio.get_running_loop()
    create = loop.create_datagram_endpoint

    async def watched(*args: object, **kwargs: object) -> object:
        pair: Any = await create(*args, **kwargs)  # type: ignore[arg-type]
        made.append(pair[0])
        return pair

    async def answer(server: udp.Endpoint) -> None:
        async for data, addr in server:
            query = dns.message.from_wire(data)
            response = dns.message.make_response(query)
            response.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "A", "192.0.2.77"))
            await server.send(response.to_wire(), addr)

    async with udp.bind("127.0.0.1", 0) as server:
        answering = asyncio.create_task(answer(server))
        monkeypatch.setattr(loop, "create_datagram_endpoint", watched)
        for number in range(20):
            query = dns.message.make_query(f"host{number}.example.", "A")
            response = await dns_asyncquery.udp(query, "127.0.0.1", port=server.local_addr[1], timeout=5)
            assert response.answer[0][0].address == "192.0.2.77"
        server.close()
        await answering
    assert len(made) == 20
    assert all(isinstance(transport, DatagramTransport) for transport in made)
