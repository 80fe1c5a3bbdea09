"""Show a report to people, as a page or a table of a terminal.

Both escape or clean every text, for names and messages come from the data. Callers write the
bytes; nothing here touches storage.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pipeline.commit.layout import earlier_names
from pipeline.core.printable import clean_message, printable
from pipeline.report.showing.lines import Trend, lines_over_time
from pipeline.report.showing.number_format import (
    UNKNOWN,
    format_count,
    format_duration,
    format_figure,
    format_mib,
    format_pct,
    format_plain,
    format_rate,
    format_size,
)
from pipeline.report.showing.pages import content_policy, page_style
from pipeline.report.showing.summary import (
    carried_lines,
    device_lines,
    failure_lines,
    gate_lines,
    hop_lines,
    retry_lines,
    scores_lines,
    skipped_lines,
    slower_lines,
    text_lines,
    totals_line,
    why_lines,
    written_lines,
)

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from pipeline.report.document import Report

_BROKEN = ("refused", "failed")
_PARTITIONS = 7
_REPORTED = 10
"""A report has so many labels; what is behind them is unknown."""


def to_html(
    report: Report, past: Sequence[Report] = (), trends: Sequence[Trend] = (), sheets: str = ""
) -> str:
    """Render a report as one page that loads nothing: inline CSS and SVG, all values escaped.

    Args:
        past: Reports of earlier runs, the newest first.
        trends: The lines of the last versions.
        sheets: Rows with what they were predicted from, as HTML that is escaped already.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=format_count,
        rate=format_rate,
        duration=format_duration,
        size=format_size,
        pct=format_pct,
        plain=format_plain,
        figure=format_figure,
    )
    return environment.get_template("report.html.jinja").render(
        report=report,
        why=why_lines(report),
        notes=[*retry_lines(report), *carried_lines(report)],
        classes=classes_of(report, past),
        trends=trends,
        time_lines=lines_over_time(report),
        sheets=Markup(sheets),  # noqa: S704  # escaped where it is made
        style=Markup(page_style()),  # noqa: S704  # of this package
        policy=content_policy(sheets),
    )


def render_table(report: Report) -> RenderableType:
    """Render the stages, the bottleneck and the totals for a terminal."""
    from rich.console import Group
    from rich.text import Text

    lines = [totals_line(report), *retry_lines(report), *carried_lines(report)]
    if report.status in _BROKEN:  # the verdict and its reason, no advice on speed
        told = [report.error or "", *failure_lines(report), *gate_lines(report), *lines]
        texts = (Text(clean_message(line)) for line in told if line)
        stages = [_stage_table(report)] if report.streaming_wall_s else []
        return Group(*texts, *stages, *_places(report))
    if report.error:
        lines.append(report.error)
    # Text, never markup: brackets in a label or a message must not become styles.
    if report.status == "nothing_to_do":
        return Group(*(Text(clean_message(line)) for line in lines), *_places(report))
    lines[:0] = [
        report.bottleneck.advice,
        *hop_lines(report),
        *text_lines(report),
        *written_lines(report),
        *scores_lines(report),
        *device_lines(report),
        *slower_lines(report),
        *failure_lines(report),
        *skipped_lines(report),
        *gate_lines(report),
    ]
    texts = (Text(clean_message(line)) for line in lines)
    return Group(_stage_table(report), *texts, *_places(report))


def _places(report: Report) -> list[RenderableType]:
    """Show the paths of the output, a line each, never folded: a folded path cannot be copied."""
    from rich.text import Text

    output = report.output
    places = (
        ("predictions", output.uri),
        ("quarantine", output.quarantine),
        ("report", output.report),
    )
    return [
        Text(printable(f"{name}: {place}"), no_wrap=True, overflow="ignore")
        for name, place in places
        if place
    ]


def _stage_table(report: Report) -> Table:
    """Return a table with one line per stage; the limiting one is bold."""
    from rich.table import Table
    from rich.text import Text

    columns = ["stage", "rows", "rows/s", "busy", "slots", "used", "MiB/s in"]
    with_retries = any(stage.retries for stage in report.stages)
    columns += ["retries"] if with_retries else []
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        table.add_column(name, justify="left" if name == "stage" else "right", no_wrap=True)
    for stage in report.stages:
        is_limit = stage.stage == report.bottleneck.stage
        table.add_row(
            Text(clean_message(stage.stage)),
            format_count(stage.rows_out),
            format_rate(stage.rows_per_s),
            format_duration(stage.busy_s),
            format_plain(stage.slots),
            format_pct(stage.utilisation_pct),
            format_mib(stage.bytes_in, stage.wall_s),
            *([format_count(stage.retries)] if with_retries else []),
            style="bold" if is_limit else "",
        )
    return table


def _printable(value: Any) -> Any:
    # A macro's result is already escaped; every other text is data and becomes one clean line.
    if value is None:
        return UNKNOWN
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return clean_message(value)
    return value


@dataclass(frozen=True)
class ClassShare:
    """One class, as a share of the rows with a prediction."""

    label: str
    rows: int
    pct: float
    before_pct: float | None
    """The mean of the partitions before that tell it; None if none does."""


@dataclass(frozen=True)
class Classes:
    """The most frequent classes of a partition."""

    shares: tuple[ClassShare, ...]
    beside: str
    """What they are compared with; '' if there is nothing."""

    @property
    def has_ids(self) -> bool:
        """Tell whether a class id stands behind a name, as in `missile (657)`."""
        return any(re.search(r" \(\d+\)$", each.label) for each in self.shares)

    @property
    def most_pct(self) -> float:
        """The largest of all shares, for the scale of a chart."""
        return max((max(each.pct, each.before_pct or 0.0) for each in self.shares), default=0.0)


def classes_of(report: Report, past: Sequence[Report]) -> Classes:
    """Compare the classes of a report with those of up to seven partitions before.

    Args:
        past: Reports of earlier runs, the newest first.
    """
    now, before = _shares(report), _before(report, past)
    earlier = [_shares(each) for each in before]
    names = dict.fromkeys([*now, *(name for shares in earlier for name in [*shares][:3])])
    counts = {each.label: each.count for each in report.top_labels}
    found = []
    for name in names:
        if name not in now and len(now) >= _REPORTED:
            continue  # it may have rows all the same
        known = [
            shares.get(name, 0.0) for shares in earlier if name in shares or len(shares) < _REPORTED
        ]
        mean = fmean(known) if known else None
        found.append(ClassShare(name, counts.get(name, 0), now.get(name, 0.0), mean))
    if not now or not before:
        return Classes(tuple(found) if now else (), "")
    last, first = before[0].partition, before[-1].partition
    are = f"the mean of the {len(before)} partitions before, {first} to {last}"
    return Classes(tuple(found), last if len(before) == 1 else are)


def _shares(report: Report) -> dict[str, float]:
    rows = report.rows.predicted
    return {each.label: 100 * each.count / rows for each in report.top_labels} if rows else {}


def _before(report: Report, past: Sequence[Report]) -> list[Report]:
    """Return the newest published report of each of the partitions before, the last one first."""
    newest: dict[str, Report] = {}
    for each in past:
        if each.status == "published" and each.top_labels:
            newest.setdefault(each.partition, each)
    return [newest[name] for name in earlier_names(report.partition, [*newest])[:_PARTITIONS]]
