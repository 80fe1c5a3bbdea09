"""Test that pages and tables show the report, and that no text of the data becomes markup."""

import json
import re
from html.parser import HTMLParser

import pytest
from support.runs.report_examples import CASES, FULL, Facts, everywhere, report_of

from pipeline.core.figures import STAGES
from pipeline.report.document import to_json
from pipeline.report.render import to_html

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=1>',
    "</style><script src=https://evil.example/x.js></script>",
    "</title><svg onload=alert(1)>",
    "{{ 7 * 191 }}",
]


class Page(HTMLParser):
    """Collect what a browser would see: elements, attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("facts", CASES.values(), ids=CASES)
def test_every_report_renders(facts: Facts):
    report = report_of(facts)
    assert facts["partition"] in Page(to_html(report)).text
    assert facts["status"].replace("_", " ") in str(report)
    assert repr(report) == str(report)


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_the_data_never_becomes_markup(text: str):
    clean, page = Page(to_html(report_of())), Page(to_html(report_of(everywhere(text))))
    assert page.elements <= clean.elements
    assert not page.elements & {"script", "img", "iframe", "object", "link", "base", "form", "a"}
    names = {name for name, _ in page.attributes}
    assert not [name for name in names if name.startswith("on") or name in ("src", "href")]
    assert text not in to_html(report_of(everywhere(text))) or text.startswith("{{")
    assert page.text.count(text) >= 15


@pytest.mark.parametrize("facts", [FULL, everywhere(HOSTILE[2])])
def test_the_page_loads_nothing(facts: Facts):
    html = to_html(report_of(facts))
    policies = [value for name, value in Page(html).attributes if name == "content"]
    assert "default-src 'none'; style-src 'unsafe-inline'" in policies
    assert html.index("Content-Security-Policy") < html.index("<style>")
    style = html[html.index("<style>") : html.index("</style>")]
    assert not re.search(r"url\(|@import|https?:", style)
    values = " ".join(value or "" for _, value in Page(html).attributes)
    assert not re.search(r"https?:|//|data:|javascript:", values)


@pytest.mark.parametrize("facts", [everywhere("a\x1b[2Jb\x07\r\nc\u202e[red]d\udcff")])
def test_control_characters_reach_neither_terminal_nor_page(facts: Facts):
    report = report_of(facts)
    terminal = str(report)
    assert r"a\x1b[2Jb\x07 c\u202e[red]d\udcff" in terminal
    for shown in (terminal, Page(to_html(report)).text):
        assert all(c.isprintable() or c == "\n" for c in shown)
    to_html(report).encode("utf-8")
    assert json.loads(to_json(report))["output"]["uri"] == facts["output"]["uri"]


def both(facts: Facts = FULL, **changes: object) -> tuple[str, str]:
    """What a terminal shows, on one line, and what a browser would see."""
    report = report_of(facts, **changes)
    return str(report).replace("\n", " "), Page(to_html(report)).text


FAILED_ROWS = {
    "reason": "empty",
    "stage": "decode",
    "message": "the image has 0 bytes",
    "num_rows": 20,
    "row_id": "in/0000.jpg",
}
REFUSED = FULL | dict(
    status="refused",
    exit_code=3,
    error="nothing was published; max_error_pct: 20 of 120 rows quarantined",
    top_failures=[FAILED_ROWS],
)
SLOWER = {
    "stage": "decode", "rows_per_busy_slot_s": 70.0, "before": 140.0, "change_pct": -50.0,
    "run_id": "r-0",
}  # fmt: skip
GATES = [
    {"name": "volume", "status": "warn", "value": -37.5, "message": "60 rows"},
    {"name": "label_drift", "status": "accepted", "message": "PSI 0.4", "reason": "new lens"},
    {"name": "constant", "status": "pass", "message": "not all alike"},
]
RETRY = {
    "base_version": 2, "entries": 1234, "recovered": 1200, "failed_again": 34, "duplicate_ids": 0,
    "not_asked": 3,
}  # fmt: skip
CARRIED = {
    "rows": 11_000, "looked_at": 2, "new_rows": 5, "changed_rows": 3, "gone_rows": 2,
    "failed_rows": 0, "checked_rows": 16, "changed_libraries": ["pillow 12.2.0 -> 13.0.0"],
    "sources": [{"partition": "date=2026-11-23", "version": 7, "rows": 11_000}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "in_both", "on_terminal", "on_page"),
    [
        ({"model": FULL["model"] | {"scores": "gives probabilities: taken as they are"}},
         ["gives probabilities: taken as they are"], [], []),
        ({"slower_than_before": [SLOWER]},
         ["slower than before: decode, 70 rows/s per slot while busy instead of 140 in run r-0"],
         [], []),
        ({"gates": GATES}, ["gate label_drift failed: PSI 0.4 (accepted: new lens)"],
         ["gate volume warns: 60 rows"], ["not all alike", "-37.5"]),
        ({"retry": RETRY},
         ["retried: 1,234 quarantined rows of version 2, 1,200 are predicted now, 34 failed again, "
          "3 stay with reasons that were not asked for"], [], []),
        ({"carried": CARRIED},
         ["carried over: 11,000 rows of date=2026-11-23 version 7, 5 new, 3 of changed shards, "
          "2 gone, 16 predicted again to be compared, more are compared since libraries changed: "
          "pillow 12.2.0 -> 13.0.0"], [], ["Carried over"]),
        ({"carried": {"why_not": "the weights changed", "looked_at": 1}}, [],
         ["nothing carried over: the weights changed"], ["why not"]),
        ({"top_failures": [FAILED_ROWS]}, ["the image has 0 bytes", "in/0000"],
         ["20 rows empty at decode: the image has 0 bytes (e.g. in/0000.jpg)"], []),
        ({"top_failures": [{"reason": "missing", "num_rows": 7, "at_least": True}]},
         ["at least 7"], ["at least 7 rows missing"], []),
        ({"in_actors": frozenset(["decoder", "writer"])}, [], [],
         ["decode, transform, transfer, predict, write share the slots of the actors"]),
        ({"price_per_node_hour": None}, [], [], ["needs run.price_per_node_hour"]),
        ({"top_labels": [{"label": f"missile{number}", "count": 2} for number in ("", " (657)")]},
         [], [], ["the class id: several classes have that name"]),
    ],
)  # fmt: skip
def test_terminal_and_page_show_the_facts_of_a_run_and_only_those(
    changes: dict[str, object], in_both: list[str], on_terminal: list[str], on_page: list[str]
):
    (terminal, page), others = both(**changes), both()
    for shown, other, words in (
        (terminal, others[0], [*in_both, *on_terminal]),
        (page, others[1], [*in_both, *on_page]),
    ):
        assert [each for each in words if each not in shown] == []
        assert [each for each in words if each in other] == []


def test_terminal_and_page_show_stages_totals_skipped_files_and_forecasts():
    report = report_of()
    terminal, page = str(report), Page(to_html(report)).text
    assert all(re.search(rf"^{stage}\b", terminal, re.MULTILINE) for stage in STAGES)
    for words in (
        "skipped 17 files: 15 .cr2, 2 marker",
        "12,003 rows = 11,990 predicted + 13 quarantined",
        "unreadable shards 1 (rows unknown)",
        "12 of 47 slices taken over from an earlier run",
        "a row: 5 B stored, 5 B to the decoders, 17 B to the actors",
    ):
        assert words in terminal
    for words in (
        *("Skipped files", "IMG_1.cr2, IMG_2.cr2", "_SUCCESS", "15 .cr2", "A row on its way"),
        "transfer, predict share the slots of the actors. decode and transform share",
        *(change.change for change in report.predictions),
    ):
        assert words in page
    assert report.bottleneck.advice in terminal
    assert report.bottleneck.advice in page


def test_facts_that_a_run_lacks_are_not_shown():
    failed_early = report_of(skipped={})
    assert failed_early.skipped.files is None
    assert "skipped" not in str(failed_early)
    assert "taken over" not in both(slices={"total": 47, "computed": 47, "resumed": 0})[0]
    assert "to the decoders" not in both(in_actors=frozenset(["decoder", "writer"]))[0]
    assert "not all alike" not in both(gates=GATES)[0]


def test_a_retry_without_success_does_not_show_nothing_to_do():
    retry = {"base_version": 2, "entries": 20, "recovered": 0, "failed_again": 20}
    rows = {"total": 100, "predicted": 80, "quarantined": 20}
    vain = FULL | dict(status="nothing_to_do", retry=retry, rows=rows)
    text = str(report_of(vain))
    assert "nothing has changed; already published: 100 rows = 80 predicted + 20" in text
    assert "0 are predicted now, 20 failed again" in text
    assert "nothing to do" not in text


def test_a_run_with_nothing_to_do_shows_one_line_of_totals():
    idle = FULL | dict(
        status="nothing_to_do",
        streaming_wall_s=None,
        counters={},
        rows={"total": 12003, "predicted": 0, "quarantined": 0, "computed": 0, "resumed": 0},
        slices={"total": 47, "computed": 0, "resumed": 0},
        price_per_node_hour=None,
        unreadable_shards=0,
    )
    lines = str(report_of(idle)).splitlines()
    assert lines == [
        "nothing to do; already published: 12,003 rows; 1 min 20 s in all",
        "predictions: s3://bucket/out",
    ]


def test_a_run_that_was_stopped_claims_no_more_rows_than_it_has():
    rows = FULL["rows"] | {"predicted": 5000, "quarantined": 1}
    stopped = FULL | dict(status="stopped", exit_code=6, rows=rows)
    assert "5,000 predicted + 1 quarantined of 12,003 rows" in str(report_of(stopped))


@pytest.mark.parametrize("status", ["refused", "failed"])
def test_a_refused_or_failed_run_opens_with_its_reason_and_has_no_advice(status: str):
    report = report_of(REFUSED, status=status)
    advice = report.bottleneck.advice
    page = Page(to_html(report)).text
    for shown in (str(report), page.partition("exit code")[2]):
        places = [
            shown.index(word) for word in (REFUSED["error"], "the image has 0 bytes", "transfer")
        ]
        assert places == sorted(places)
        assert advice not in shown
        assert shown.index("max_error_pct") < shown.index("rows/s")
    assert str(report).startswith("nothing was published")
    assert page.count("Gates") == both()[1].count("Gates") == 1


def test_gpus_and_their_advice_are_shown_and_a_single_processor_is_not():
    def lines(device: str, **fields: object) -> list[str]:
        model = FULL["model"] | {"device": device, **fields}
        return str(report_of(model=model)).splitlines()

    on_gpus = {"NVIDIA L4, driver 580.65": 2_000, "Tesla T4, driver 580.65": 1}
    on_gpu = lines("cuda", devices=on_gpus, advice=["fp32 is slow"])
    assert (
        "computed on NVIDIA L4, driver 580.65: 2,000 rows; Tesla T4, driver 580.65: 1 row" in on_gpu
    )
    assert "fp32 is slow" in on_gpu
    on_cpus = lines("cpu", devices={"Xeon": 5})
    assert not any("computed on" in line for line in on_cpus)
    assert any("computed on Xeon" in x for x in lines("cpu", devices={"Xeon": 5, "Epyc": 5}))


def test_the_page_begins_with_the_verdict_and_ends_with_the_speed():
    over_time = {"bin_s": 2.0, "rows": [10, 30, 20], "actors": [1, 2, 2]}
    causes = [{"reason": "truncated", "message": "cut", "num_rows": 9, "row_id": "a/b.jpg"}]
    html = to_html(report_of(over_time=over_time, top_failures=causes))
    order = ["Verdict", "1 gate passed", "Headline", "Why rows failed", "a/b.jpg", "<h2>Classes",
             "<h2>Gates", "<h2>Output", "What held it back", "Over time", "Start-up"]  # fmt: skip
    places = [html.index(text) for text in order]
    assert places == sorted(places)
    assert 'aria-label="rows/s: 5 to 15, now 10"' in html
    refused = to_html(report_of(status="refused", exit_code=3, error="too few rows"))
    assert refused.index("too few rows") < refused.index("Headline")
    assert "1 gate passed" not in refused
