"""`reports/index.html`: the last partitions of an output, each with a link to its report.

It is written anew at each end of a run that has a result, from what is stored, and nothing reads
it: a page that is lost or of before another run costs nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from urllib.parse import quote

from pipeline.commit.layout import Layout, partition_order
from pipeline.core.printable import clean_message, num_of
from pipeline.report.showing.notebook import cell
from pipeline.report.showing.number_format import UNKNOWN, format_duration, format_plain
from pipeline.report.showing.pages import page_html
from pipeline.runs.exports import folder_name
from pipeline.runs.weeks.state import PartitionStatus
from pipeline.runs.weeks.survey import is_partition, survey
from pipeline.storage.store import Store

log = logging.getLogger(__name__)

INDEX = "reports/index.html"
_SHOWN = 60
"""Partitions: about two small requests each."""
_TONES = {"complete": "good", "running": "soft", "refused": "bad", "failed": "bad"}
_HEAD = ("partition", "state", "version", "published", "rows", "quarantined", "carried over",
         "took", "cost", "why")  # fmt: skip


def try_index(store: Store) -> None:
    """Write the page; if that fails it is a warning."""
    try:
        known = filter(is_partition, store.list_folders("_control"))
        names = sorted(known, key=partition_order)
        found = survey(store, names[-_SHOWN:])
        page = index_html(store.url(""), found, len(names) - len(found), links=True)
        store.put(INDEX, page.encode())
    except Exception as error:  # noqa: BLE001  # what is published is published
        told = clean_message(f"{type(error).__name__}: {error}")
        log.warning("%s is not written: %s", store.url(INDEX), told)


def index_html(url: str, found: Iterable[PartitionStatus], num_earlier: int, *, links: bool) -> str:
    """Return the page: the last partition first.

    Args:
        found: By date or number.
        num_earlier: How many more there are.
        links: The page lies beside the reports.
    """
    return page_html(f"{folder_name(url)}: partitions", [table(found, num_earlier, links=links)])


def table(found: Iterable[PartitionStatus], num_earlier: int, *, links: bool) -> str:
    """Return partitions as a table of HTML, the last one first; arguments: `index_html`."""
    rows = [*map(lambda each: _row(each, links=links), found)][::-1]
    head = "".join(f"<th>{name}</th>" for name in _HEAD)
    more = f"{num_of(num_earlier, 'earlier partition')}: pipeline status" if num_earlier else ""
    return (
        f"<table><caption>{more}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>\n{chr(10).join(rows)}\n</tbody></table>"
    )


def _row(each: PartitionStatus, *, links: bool) -> str:
    name = cell(each.partition)
    if links and each.run_id:
        path = Layout.named(each.partition).report(each.run_id, "report.html")
        name = f'<a href="./{quote(path.removeprefix("reports/"))}">{name}</a>'
    state = f'<span class="{_TONES.get(each.state, "hot")}">{cell(each.state)}</span>'
    share = f"{100 * each.quarantined / each.rows:.2f}%" if each.rows and each.quarantined else None
    quarantined = cell(each.quarantined) + (f" ({share})" if share else "")
    took = UNKNOWN if each.duration_s is None else format_duration(each.duration_s)
    values = (
        *(state, cell(each.version), cell(each.published_at), cell(each.rows), quarantined),
        *(cell(each.carried), took, format_plain(each.cost)),
    )
    cells = "".join(f'<td class="num">{value}</td>' for value in values)
    return f"<tr><th>{name}</th>{cells}<td>{cell(each.why or '')}</td></tr>"
