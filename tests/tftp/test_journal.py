"""What is told of transfers."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import attrs
import pytest

from asyncnet.tftp.journal import MetricsCollector, Outcome, ServerStats, TransferRecord

RECORD = TransferRecord(
    peer=("192.0.2.1", 2000), name="a\nb", is_write=False, mode="octet", bytes=2_000_000, seconds=0.5, block_size=1428,
    window_size=16, retransmitted=3, outcome=Outcome.COMPLETE, error=None,
)  # fmt: skip


@pytest.mark.parametrize(("record", "line"), [
    (RECORD, r"192.0.2.1:2000 read 'a\nb': 2000000 bytes in 0.500 s, 4.0 MB/s, 3 retransmitted: complete"),
    (attrs.evolve(RECORD, outcome=Outcome.REFUSED, error="No such file", is_write=True),
     r"192.0.2.1:2000 write 'a\nb' refused: No such file"),
    (attrs.evolve(RECORD, outcome=Outcome.FAILED, error="gone", seconds=0),
     r"192.0.2.1:2000 read 'a\nb': 2000000 bytes in 0.000 s, 0.0 MB/s, 3 retransmitted: gone"),
])  # fmt: skip
def test_a_line_for_people(record: TransferRecord, line: str) -> None:
    assert record.line() == line


def test_a_line_of_json() -> None:
    line = RECORD.json()
    assert "\n" not in line
    assert json.loads(line) == {
        "peer": "192.0.2.1:2000", "name": "a\nb", "is_write": False, "mode": "octet", "bytes": 2_000_000,
        "seconds": 0.5, "block_size": 1428, "window_size": 16, "retransmitted": 3, "outcome": "complete", "error": None,
    }  # fmt: skip


def test_every_count_is_a_metric() -> None:
    prometheus = pytest.importorskip("prometheus_client")
    registry = prometheus.CollectorRegistry()
    server = SimpleNamespace(stats=ServerStats(requests=7, active=2))
    registry.register(MetricsCollector(server))
    text = prometheus.generate_latest(registry).decode()
    assert "asyncnet_tftp_requests_total 7.0" in text
    assert "asyncnet_tftp_active 2.0" in text
    server.stats.requests = 8
    assert "asyncnet_tftp_requests_total 8.0" in prometheus.generate_latest(registry).decode()
    assert text.count("# TYPE") == len(attrs.fields(ServerStats))


def test_metrics_without_the_extra_name_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ImportError, match=r"asyncnet\[metrics\]"):
        MetricsCollector(SimpleNamespace(stats=None))
