"""The public names, and that each is documented."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest

import asyncnet

PUBLIC = {
    "asyncnet": "__version__ broadcast compat errors new_event_loop run tcp tftp udp workers",
    "asyncnet.addresses": "Address IPNetwork Interface InterfaceAddress InterfaceFlags PortClass broadcast_address"
    " client_of explain format_address in_networks interfaces parse_address parse_network port_class same_subnet",
    "asyncnet.broadcast": "Announcer AnnouncerStats AnswerHandler Answerer AnswererStats AskStats Asking Browser"
    " BrowserStats Browsing DISCOVERY_PORT Event EventKind Location Peer Reply RosterStats Way WayReport announce"
    " answer ask browse",
    "asyncnet.compat": "DatagramHandler ENGINES Endpoint Engine Handler Kernel Reader Server Spawned Stats Writer"
    " create_datagram_server create_server find_engine open_endpoint open_streams run run_blocking serve serve_datagram"
    " sleep spawn timeout wait_readable wait_writable",
    "asyncnet.errors": "AddressError AsyncnetError ClosedError EngineError ForeignAwaitError LocalError"
    " MissingExtraError PacketError RemoteError TftpError",
    "asyncnet.lab": "Change Comparison Interval Progress Ratio Run Settings Summary Verdict Workload agreement compare "
    "compare_with_baseline format_agreement format_changes format_html format_table read_baseline workloads_of",
    "asyncnet.loops": "HAVE_UVLOOP LOOPS loop_name new_event_loop run",
    "asyncnet.tcp": "MetricsCollector ProxyHeader Server ServerStats SocketOptions StopReport StreamReader StreamWriter"
    " connect serve",
    "asyncnet.testing": "RelayStats UdpRelay udp_relay",
    "asyncnet.tftp": "Client Directory Guard Hooks Limits MetricsCollector Options Outcome RemapRule Remapped Report"
    " Request Roots Server ServerStats Storage TftpUrl Timing TransferRecord WritePolicy explain_remap get parse_url"
    " put serve",
    "asyncnet.udp": "MAX_PAYLOAD Capabilities Datagram DatagramTransport Endpoint EndpointStats QueuePolicy Train bind"
    " connect create_datagram_endpoint probe",
    "asyncnet.workers": "Recycle Worker run",
}

MODULES = [name for _, name, _ in pkgutil.walk_packages(asyncnet.__path__, "asyncnet.") if name != "asyncnet.__main__"]


@pytest.mark.parametrize("module", PUBLIC)
def test_the_public_names_are_fixed(module: str) -> None:
    assert set(importlib.import_module(module).__all__) == set(PUBLIC[module].split())


@pytest.mark.parametrize("module", ["asyncnet", *MODULES])
def test_a_module_exports_names_that_exist_and_says_what_it_is(module: str) -> None:
    loaded = importlib.import_module(module)
    assert loaded.__doc__
    assert loaded.__all__ == list(dict.fromkeys(loaded.__all__))
    assert all(hasattr(loaded, name) for name in loaded.__all__)


@pytest.mark.parametrize("module", ["asyncnet", *MODULES])
def test_public_classes_functions_and_methods_have_docstrings(module: str) -> None:
    loaded = importlib.import_module(module)
    bare = []
    for name in loaded.__all__:
        thing = getattr(loaded, name)
        if not (inspect.isclass(thing) or inspect.isfunction(thing)):
            continue
        if not inspect.getdoc(thing):
            bare.append(name)
        if inspect.isclass(thing) and not getattr(thing, "_is_protocol", False):
            own = (m for m in vars(thing) if not m.startswith("_") and callable(getattr(thing, m)))
            bare += [f"{name}.{method}" for method in own if not inspect.getdoc(getattr(thing, method))]
    assert not bare


def test_there_are_few_exception_classes() -> None:
    assert len(asyncnet.errors.__all__) <= 10
    for name in asyncnet.errors.__all__:
        assert issubclass(getattr(asyncnet.errors, name), asyncnet.errors.AsyncnetError)
        assert name in (asyncnet.errors.__doc__ or "")
