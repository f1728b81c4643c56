"""UDP to await: `bind`, `connect`, and the `Endpoint` they open."""

from asyncnet.udp.endpoint import MAX_PAYLOAD, Endpoint, EndpointStats, bind, connect

__all__ = ["MAX_PAYLOAD", "Endpoint", "EndpointStats", "bind", "connect"]
