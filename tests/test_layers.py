"""The order of the modules, as the design lists them: each imports only from the lines above its own."""

from __future__ import annotations

import ast
from pathlib import Path

import asyncnet

PACKAGE = Path(asyncnet.__file__).parent

# One line is one layer; modules on one line do not import each other.
LAYERS = """
asyncnet.errors asyncnet.perloop asyncnet.arguments asyncnet.descriptors asyncnet.forks
asyncnet.netlink asyncnet.opening asyncnet.wakeup asyncnet.poller asyncnet.metrics
asyncnet.addresses
asyncnet.resolver asyncnet.activation asyncnet.privileges
asyncnet.tftp.packets asyncnet.tftp.netascii asyncnet.tftp.retransmit
asyncnet.tftp.options
asyncnet.tftp.transfer
asyncnet.udp.capabilities
asyncnet.udp.ancillary
asyncnet.udp.sockets
asyncnet.udp.batch
asyncnet.udp.sending
asyncnet.udp.transport
asyncnet.udp.create
asyncnet.udp.inbox
asyncnet.udp.endpoint
asyncnet.udp.open
asyncnet.udp
asyncnet.loops
asyncnet.tcp.sendqueue asyncnet.tcp.deadlines asyncnet.tcp.proxy
asyncnet.tcp.sending asyncnet.tcp.reading asyncnet.tcp.prelude
asyncnet.tcp.transport
asyncnet.tcp.alarm
asyncnet.tcp.streams
asyncnet.tcp.writing
asyncnet.tcp.listeners asyncnet.tcp.connections asyncnet.tcp.settings
asyncnet.tcp.acceptor
asyncnet.tcp.server asyncnet.tcp.client
asyncnet.tcp.serving
asyncnet.tcp
asyncnet.tftp.files
asyncnet.tftp.storage
asyncnet.tftp.routing asyncnet.tftp.guard
asyncnet.tftp.session
asyncnet.tftp.sending asyncnet.tftp.receiving asyncnet.tftp.ports asyncnet.tftp.journal
asyncnet.tftp.answering
asyncnet.tftp.client asyncnet.tftp.server
asyncnet.tftp.serving asyncnet.tftp.urls
asyncnet.tftp
asyncnet.broadcast.messages asyncnet.broadcast.limits asyncnet.broadcast.ways
asyncnet.broadcast.identity asyncnet.broadcast.roster asyncnet.broadcast.watch asyncnet.broadcast.channel
asyncnet.broadcast.medium
asyncnet.broadcast.asking
asyncnet.broadcast.answering asyncnet.broadcast.announcing
asyncnet.broadcast.browsing
asyncnet.broadcast
asyncnet.workers.members
asyncnet.workers.fleet asyncnet.workers.board asyncnet.workers.binding asyncnet.workers.pidfile
asyncnet.workers.handover asyncnet.workers.report
asyncnet.workers.child asyncnet.workers.line asyncnet.workers.recycling asyncnet.workers.admin
asyncnet.workers.plan
asyncnet.workers.master
asyncnet.workers.renewal
asyncnet.workers.running
asyncnet.workers
asyncnet.compat.classic
asyncnet.compat.classic.broadcast asyncnet.compat.classic.coroutine asyncnet.compat.classic.tcp_client
asyncnet.compat.classic.tcp_epoll asyncnet.compat.classic.tcp_gevent asyncnet.compat.classic.tcp_nonblocking
asyncnet.compat.classic.tcp_poll asyncnet.compat.classic.tcp_process asyncnet.compat.classic.tcp_select
asyncnet.compat.classic.tcp_thread asyncnet.compat.classic.tftp_client asyncnet.compat.classic.udp_client
asyncnet.compat.classic.udp_receiver
asyncnet.compat.traps
asyncnet.compat.tasks
asyncnet.compat.writing asyncnet.compat.descriptors
asyncnet.compat.streams
asyncnet.compat.serving asyncnet.compat.blocking
asyncnet.compat.kernel asyncnet.compat.elsewhere
asyncnet.compat.connections asyncnet.compat.datagrams
asyncnet.compat.transfers asyncnet.compat.questions
asyncnet.compat.readiness asyncnet.compat.threads asyncnet.compat.processes asyncnet.compat.greenlets
asyncnet.compat.native
asyncnet.compat.running
asyncnet.compat.engines
asyncnet.compat
asyncnet.lab.native asyncnet.lab.model asyncnet.lab.metrics asyncnet.lab.figures
asyncnet.lab.histogram asyncnet.lab.schedule
asyncnet.lab.processes asyncnet.lab.workloads asyncnet.lab.holding asyncnet.lab.servers
asyncnet.lab.transfers asyncnet.lab.generator asyncnet.lab.environment asyncnet.lab.comparison
asyncnet.lab.load asyncnet.lab.measuring asyncnet.lab.report asyncnet.lab.charts asyncnet.lab.baseline
asyncnet.lab.compare asyncnet.lab.page
asyncnet.lab
asyncnet.testing
asyncnet.cli.common
asyncnet.cli.supervised
asyncnet.cli.tftp_serve asyncnet.cli.browse
asyncnet.cli.classic
asyncnet.cli.broadcast asyncnet.cli.compare asyncnet.cli.info asyncnet.cli.tcp asyncnet.cli.tftp asyncnet.cli.udp
asyncnet.cli.workers
asyncnet.cli.demo
asyncnet.cli
asyncnet.__main__
asyncnet
"""

LEVEL = {name: level for level, line in enumerate(LAYERS.split("\n")) for name in line.split()}

SANS_IO = (
    "asyncnet.tftp.packets",
    "asyncnet.tftp.options",
    "asyncnet.tftp.netascii",
    "asyncnet.tftp.retransmit",
    "asyncnet.tftp.transfer",
    "asyncnet.tcp.deadlines",
    "asyncnet.tcp.proxy",
    "asyncnet.broadcast.messages",
    "asyncnet.broadcast.limits",
    "asyncnet.broadcast.roster",
    "asyncnet.workers.members",
    "asyncnet.workers.fleet",
    "asyncnet.lab.figures",
    "asyncnet.lab.histogram",
    "asyncnet.lab.schedule",
    "asyncnet.lab.model",
)


def module_name(path: Path) -> str:
    parts = ["asyncnet", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Every module that `path` imports, whether at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            known = submodules & LEVEL.keys()
            found.update(known or {node.module})
            if known and known != submodules:
                found.add(node.module)
    return found


def modules() -> dict[str, Path]:
    return {module_name(path): path for path in PACKAGE.rglob("*.py")}


def test_every_module_has_its_layer() -> None:
    assert set(modules()) == set(LEVEL)


def test_a_module_imports_only_from_lines_above_it() -> None:
    wrong = [
        f"{name} imports {imported}"
        for name, path in modules().items()
        for imported in imports(path)
        if imported.partition(".")[0] == "asyncnet" and imported != "asyncnet" and LEVEL[imported] >= LEVEL[name]
    ]
    assert not wrong


def test_sans_io_modules_know_no_clock_no_socket_and_no_loop() -> None:
    forbidden = {"asyncio", "socket", "time", "select", "selectors", "os"}
    wrong = [f"{name} imports {found}" for name in SANS_IO for found in imports(modules()[name]) & forbidden]
    assert not wrong
