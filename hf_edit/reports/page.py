"""The page of a bench: tables, pictures and answers in one HTML file that needs no network."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from hf_edit.errors import visible
from hf_edit.packs.card import shown_figure
from hf_edit.reports.result import Result, Row
from hf_edit.reports.tables import costs, kept, named, taught


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 72rem; margin: 2rem auto;
  padding: 0 1rem }
h1 { font-size: 1.6rem; margin-bottom: 0 } h2 { font-size: 1.2rem; margin-top: 2.2rem }
h3 { font-size: 1rem; margin: 1rem 0 0 }
table { border-collapse: collapse; font-size: 13px; margin: .6rem 0 }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #e2e2e2; text-align: left; vertical-align: top }
th { border-bottom: 1px solid #888; font-weight: 600 } td { font-variant-numeric: tabular-nums }
.wide { overflow-x: auto } .text td { white-space: pre-wrap; overflow-wrap: anywhere; max-width: 26rem }
figure { margin: 1rem 0 } figure svg { max-width: 100%; height: auto }
details { margin: .4rem 0 } summary { cursor: pointer; color: #0057a3 } .note { color: #666 }
"""
CAPTIONS = {
    "before_after": "Share of the edits' own questions that are answered word for word as taught, by free generation.",
    "trade_off": "What an edit wins against what it disturbs. Bars are 95 % intervals.",
    "retention": "All questions are asked after the last edit; each point is a tenth of them, as they were taught.",
    "layers": "Frobenius norm of the update relative to the weight's, and its rank, for every changed linear map.",
    "costs": "Seconds without those of statistics, which are collected once per base.",
}


def page(result: Result, pictures: Mapping[str, str]) -> str:
    """The page.

    Args:
        pictures: name -> an `svg` element, as `hf_edit.reports.pictures.drawn` gives them.
    """
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            f'<head><meta charset="utf-8"><title>{_text(f"Bench of {result.title}")}</title>',
            f"<style>{STYLE}</style></head>",
            "<body>",
            f"<h1>{_text(f'Bench of {result.title}')}</h1>",
            f'<p class="note">{_text(_conditions(result))}</p>',
            *(line for data, rows in result.by_data().items() for line in _data(data, rows)),
            *_refused(result),
            "<h2>Pictures</h2>",
            *(
                f"<figure>{svg}<figcaption>{_text(CAPTIONS[name])}</figcaption></figure>"
                for name, svg in pictures.items()
            ),
            "<h2>How it was measured</h2>",
            "<p>Answers are generated freely, greedily and to their natural stop, unless a metric says otherwise; "
            "figures of different protocols do not compare. In brackets 95 % intervals over records: BCa bootstrap, "
            "Wilson's for shares, and of lm-eval's tasks by its standard errors.</p>",
            f"<details><summary>Settings</summary><pre>{_json(result.settings)}</pre></details>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _data(data: str, rows: Sequence[Row]) -> Iterator[str]:
    yield f"<h2>{_text(data)}</h2>"
    yield "<h3>What was taught</h3>"
    yield from _table(*taught(rows, intervals=True))
    yield "<h3>What was disturbed</h3>"
    yield from _table(*kept(rows, intervals=True))
    yield "<h3>What it cost</h3>"
    yield from _table(*costs(rows))
    for row in rows:
        yield f"<details><summary>{_text(f'{named(row, rows)}: all figures and some answers')}</summary>"
        yield from _table(("metric", "before", "after", "n", "protocol", "what it says"), _figures(row))
        examples = [
            (one.kind, one.question, "\n".join(one.accepted), one.before or "", one.after or "")
            for one in row.examples
        ]
        yield from _table(("asked", "question", "right answer", "before", "after"), examples, "text")
        yield f'<p class="note">{_text(_cost(row))}</p></details>'


def _figures(row: Row) -> Iterator[Sequence[str]]:
    for metric in row.metrics:
        lower = "" if metric.higher_is_better else " Lower is better."
        yield (
            metric.name,
            shown_figure(metric.before),
            shown_figure(metric.after),
            str(metric.figure.n),
            metric.protocol,
            f"{metric.compared}{lower}",
        )


def _cost(row: Row) -> str:
    parts = [f"Prompt format: {row.protocol['format']}"]
    parts += [f"{name.replace('_', ' ')}: {value:.4g} s" for name, value in row.seconds.items()]
    parts += [f"peak memory ({place}): {size / 1e9:.2f} GB" for place, size in row.peak_memory.items()]
    if row.packs is not None:
        parts.append(f"{row.packs.count} pack(s) of {row.packs.bytes / 1e3:,.0f} kB in the mean")
    return "; ".join(parts) + "."


def _refused(result: Result) -> Iterator[str]:
    if result.refused:
        yield "<h2>Not measured</h2>"
        yield from _table(("cell", "why"), [(one.name, one.refused) for one in result.refused])


def _conditions(result: Result) -> str:
    """Model, dtype, hardware and versions on one line."""
    environments = [row.environment for row in result.cells]
    versions = {f"{name} {version}" for one in environments for name, version in one["versions"].items()}
    machines = [one["hardware"] for one in environments]
    base = result.base
    return ", ".join(
        [
            f"{base['parameters'] / 1e6:,.0f}M parameters in {base['layers']} layers",
            *([f"revision {base['revision']}"] if base.get("revision") else []),
            *sorted({f"{one['dtype']} on {one['device']}" for one in environments}),
            *sorted({f"{m['processor']}, {m['threads']} thread(s), {m['processes']} process(es)" for m in machines}),
            *sorted(versions),
        ]
    )


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> Iterator[str]:
    head = "".join(f"<th>{_text(column)}</th>" for column in columns)
    yield f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>'
    for row in rows:
        yield f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>"
    yield "</tbody></table></div>"


def _json(value: Any) -> str:
    return _text(json.dumps(value, indent=2, ensure_ascii=False))


def _text(text: str) -> str:
    """Text of anybody, as text."""
    return escape(visible(text))
