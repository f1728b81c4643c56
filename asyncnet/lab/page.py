"""A comparison as one page of HTML: charts first, every figure in tables below; it loads nothing from anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from html import escape
from typing import Final

from asyncnet.lab.charts import NARROW, WIDE, Bar, Curve, bars, curves
from asyncnet.lab.comparison import Comparison, Summary
from asyncnet.lab.figures import Verdict
from asyncnet.lab.metrics import METRICS
from asyncnet.lab.model import CEILING, Workload
from asyncnet.lab.report import COLUMNS, best_and_worst, heading_of, notes_of, spoken_ratio, title_of
from asyncnet.lab.workloads import MAIN

__all__ = ["format_html"]

_STYLE: Final = """
:root{color-scheme:light dark;--ink:#1c2330;--soft:#5b6576;--line:#d9dee7;--paper:#fff;--card:#f6f8fb;--a:#2f6fde;
--b:#8db4f5;--good:#137a3f;--bad:#b3261e;--grey:#c3cad6}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaf2;--soft:#9aa5b8;--line:#333c4c;--paper:#12161d;--card:#1a2029;
--a:#6ea1ff;--b:#34568f;--good:#5fd38d;--bad:#ff8a80;--grey:#465064}}
*{box-sizing:border-box}body{margin:0 auto;max-width:70rem;padding:1.2rem;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,sans-serif}h1{font-size:1.6rem;margin:.2rem 0}h2{font-size:1.2rem;margin:2rem 0 .3rem}
h3{font-size:1rem;margin:1.4rem 0 .3rem}
p{margin:.3rem 0;max-width:48rem}.soft,figcaption{color:var(--soft)}svg{width:100%;height:auto;display:block}
.chart{background:var(--card);border-radius:.6rem;padding:1rem;margin:.6rem 0}text{fill:var(--ink);font-size:13px}
.axis{fill:var(--soft);font-size:10.5px}.grid{stroke:var(--line)}.part0{fill:var(--a)}.part1{fill:var(--b)}
.faint .part0{fill:var(--grey)}.faint text{fill:var(--soft)}.strong text{font-weight:700}
.whisker{stroke:var(--ink);fill:none;stroke-width:1.4}.other{stroke:var(--grey);fill:none;stroke-width:1}
.mine{stroke:var(--a);fill:none;stroke-width:2.6}.small{display:grid;gap:.8rem;
grid-template-columns:repeat(auto-fill,minmax(210px,1fr))}figure{margin:0}figcaption{font-size:.85rem;font-weight:600}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.85rem;width:100%}
th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:var(--paper)}th{color:var(--soft)}
.best{color:var(--good);font-weight:700}.worst{color:var(--bad)}.bad{color:var(--bad);font-weight:700}
.key span{display:inline-block;width:.8rem;height:.8rem;border-radius:.15rem;margin:0 .3rem 0 .9rem}
li{margin:.2rem 0}details{margin:.6rem 0}summary{cursor:pointer}dl{display:grid;grid-template-columns:max-content 1fr;
gap:.1rem 1rem;font-size:.85rem}dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
.narrow{display:none}
@media(max-width:40rem){body{padding:.8rem}.chart{padding:.6rem}.wide{display:none}.narrow{display:block}
.small{grid-template-columns:1fr 1fr}dl{grid-template-columns:1fr}dd{margin-bottom:.4rem}}
"""
_PERCENTILES: Final = {"p50": "p50", "p90": "p90", "p99": "p99", "p999": "p99.9"}


def format_html(comparison: Comparison) -> str:
    """Return the page."""
    where = comparison.environment
    machine = escape(f"{where.get('cpu')}, {where.get('cores')} cores, Linux {where.get('kernel')}")
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>asyncnet compare</title><style>{_STYLE}</style></head><body>",
        f"<h1>One handler on every engine</h1><p class=soft>{escape(title_of(comparison))}</p>",
        f"<p class=soft>{machine}, "
        f"Python {escape(str(where.get('python')))}, {escape(str(where.get('time')))}. Loopback: system calls and "
        "scheduling are compared, not a network.</p>",
        *_charts(comparison),
        "<h2>Every figure</h2>",
        *(_table(comparison, workload) for workload in comparison.workloads if _was_run(comparison, workload)),
        _notes(comparison),
        _environment(comparison),
        "</body></html>",
    ]
    return "\n".join(parts)


def _was_run(comparison: Comparison, workload: Workload) -> bool:
    return any(run.workload == workload.name for run in comparison.runs)


def _charts(comparison: Comparison) -> Iterator[str]:
    named = [found for found in comparison.workloads if found.name == MAIN[comparison.settings.protocol]]
    main = (named or list(comparison.workloads))[0]
    rate = METRICS["requests_per_second"]
    yield from _bars(
        comparison, main, "Throughput",
        f"Requests per second, {heading_of(comparison, main)}; the whisker is the 95 % interval. More is better.",
        _rate_bar,
        rate.name, "requests/s",
    )  # fmt: skip
    yield from _bars(
        comparison, main, "CPU for each request",
        "Microseconds of the server's processor, its children included: "
        '<span class=key><span style="background:var(--a)"></span>user'
        '<span style="background:var(--b)"></span>system</span>. '
        "Less is better, and this figure is the server's own, whatever the load generator can do.",
        _cpu_bar, "cpu", "µs",
    )  # fmt: skip
    yield from _latencies(comparison)
    idle = next((found for found in comparison.workloads if found.mode == "idle"), None)
    if idle is not None:
        yield from _bars(
            comparison, idle, "Memory for each connection",
            f"KiB of memory (PSS) by which a server grows with each connection, {idle.title}. Less is better.",
            _memory_bar,
            "memory", "KiB",
        )  # fmt: skip


def _rate_bar(summary: Summary) -> Bar:
    found = summary.values["requests_per_second"]
    return Bar(summary.engine, (found.median,), f"{found.median:,.0f}", found)


def _memory_bar(summary: Summary) -> Bar:
    found = summary.values["memory"].median
    return Bar(summary.engine, (found / 1024,), METRICS["memory"].show(found))


def _cpu_bar(summary: Summary) -> Bar:
    user, system = (summary.values[name].median * 1e6 for name in ("cpu_user", "cpu_system"))
    return Bar(summary.engine, (user, system), METRICS["cpu"].show(summary.values["cpu"].median))


def _bars(
    comparison: Comparison, workload: Workload, title: str, text: str, row: Callable[[Summary], Bar], metric: str,
    unit: str,
) -> Iterator[str]:  # fmt: skip
    found = [summary for summary in comparison.summaries(workload.name) if metric in summary.values]
    if not found:
        return
    better = -1 if METRICS[metric].more_is_better else 1
    found.sort(key=lambda summary: better * summary.values[metric].median)
    rows = []
    for summary in found:
        bar = row(summary)
        invalid = "" if summary.rounds else " INVALID"
        own = summary.engine == "asyncnet"
        rows.append(Bar(bar.label, bar.parts, bar.text + invalid, bar.interval, own, summary.engine == CEILING))
    drawn = "".join(
        f"<div class={kind}>{bars(rows, unit, title, width)}</div>"
        for kind, width in (("wide", WIDE), ("narrow", NARROW))
    )
    yield f"<h2>{escape(title)}</h2><p class=soft>{text}</p><div class=chart>{drawn}</div>"


def _latencies(comparison: Comparison) -> Iterator[str]:
    offered = [workload for workload in comparison.workloads if workload.name.startswith("rate-")]
    for workload in offered:
        found = [summary for summary in comparison.summaries(workload.name) if summary.engine != CEILING]
        places = [name for name in _PERCENTILES if all(name in summary.values for summary in found if summary.values)]
        all_curves = [
            Curve(
                summary.engine + ("" if summary.rounds else " (INVALID)"),
                tuple(summary.values[name].median * 1e3 for name in places),
            )
            for summary in found
            if summary.values
        ]
        drawn = curves(all_curves, [_PERCENTILES[name] for name in places], "ms")
        if drawn:
            yield (
                f"<h2>Latency at the same load</h2><p class=soft>{escape(heading_of(comparison, workload))}. "
                "Milliseconds, logarithmic, from the moment at which a request was to be sent; the others are grey. "
                "Lower is better.</p>"
                f"<div class='chart small'>{''.join(drawn)}</div>"
            )


def _table(comparison: Comparison, workload: Workload) -> str:
    closed = not workload.rate and workload.mode in ("echo", "udp", "churn", "tftp")
    names = [
        *(["requests_per_second"] if closed else []),
        *(["cpu", "cpu_user", "cpu_system"] if closed or workload.rate else []),
    ]
    names = list(dict.fromkeys([*names, *COLUMNS[workload.mode]]))
    judged = "requests_per_second" if closed else "p99" if workload.rate else None
    head = "".join(f"<th>{escape(METRICS[name].heading)}</th>" for name in names)
    more = (
        f"<th>{'% of C</th><th>' if closed else ''}{escape(METRICS[judged].heading)} to "
        f"{escape(comparison.settings.baseline)}</th>"
        if judged
        else ""
    )
    rows = []
    marks = {name: best_and_worst(comparison, workload.name, name) for name in names}
    for summary in comparison.summaries(workload.name):
        cells = [f"<td>{escape(summary.engine)}</td>"]
        for name in names:
            best, worst = marks[name]
            kind = "best" if summary.engine == best else "worst" if summary.engine == worst else ""
            value = summary.values.get(name)
            cells.append(f"<td class='{kind}'>{METRICS[name].show(value.median) if value is not None else '-'}</td>")
        if closed:
            cells.append(f"<td>{'-' if summary.of_ceiling is None else f'{summary.of_ceiling:.0%}'}</td>")
        if judged:
            ratio = summary.ratios.get(judged)
            plain = ratio is not None and ratio.verdict is Verdict.NO_DIFFERENCE
            cells.append(f"<td class='{'soft' if plain else ''}'>{escape(spoken_ratio(ratio))}</td>")
        cells.append(f"<td>{summary.failures}</td>" if not summary.errors and summary.rounds else
                     f"<td class=bad>{'error' if summary.errors else 'INVALID'}</td>")  # fmt: skip
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f"<h3>{escape(heading_of(comparison, workload))}</h3><div class=scroll><table>"
        f"<thead><tr><th>engine</th>{head}{more}<th>failed</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _notes(comparison: Comparison) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes_of(comparison))
    return f"<h2>What else is to be known</h2><ul>{items}</ul>"


def _environment(comparison: Comparison) -> str:
    flat: dict[str, object] = {}
    for name, value in comparison.environment.items():
        if isinstance(value, dict):
            flat |= {f"{name}: {inner}": found for inner, found in value.items()}
        else:
            flat[name] = value
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in flat.items())
    return f"<details><summary>The machine and the versions</summary><dl>{rows}</dl></details>"
