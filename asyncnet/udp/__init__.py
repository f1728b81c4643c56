"""UDP: endpoints to await, and a fast transport for any `asyncio.DatagramProtocol`."""

from asyncnet.udp.ancillary import Datagram, Train
from asyncnet.udp.capabilities import Capabilities, probe
from asyncnet.udp.create import create_datagram_endpoint
from asyncnet.udp.endpoint import MAX_PAYLOAD, Endpoint
from asyncnet.udp.inbox import EndpointStats, QueuePolicy
from asyncnet.udp.open import bind, connect
from asyncnet.udp.transport import DatagramTransport

__all__ = [
    "MAX_PAYLOAD",
    "Capabilities",
    "Datagram",
    "DatagramTransport",
    "Endpoint",
    "EndpointStats",
    "QueuePolicy",
    "Train",
    "bind",
    "connect",
    "create_datagram_endpoint",
    "probe",
]
