"""Promise: each of many nights in a row equals a full recompute, whatever happens between them."""

from __future__ import annotations

import datetime as dt
import random
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import models
import pytest
import torch
from deltalake import DeltaTable
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.faults.faultplaces import fail_at
from support.models.model_cases import colours_state
from support.runs.carried_runs import assert_as_all_computed
from support.runs.earlier_partitions import EarlierPartition
from support.runs.night_inputs import FORMATS, Change, NightInputs

from pipeline.commit.garbage import collect_garbage
from pipeline.commit.manifest import log_numbers
from pipeline.commit.publish import rollback
from pipeline.commit.shard_table import KnownShard, read_shard_table
from pipeline.core.errors import GateRefused
from pipeline.reuse.checked_sample import LEAST_ROWS
from pipeline.reuse.retried import RETRIED
from pipeline.storage.store import Store

Facts = tuple[str, int, str]
"""URI, size and version of a shard."""
FIRST = dt.date(2026, 11, 1)
EVENTS = (
    *("none", "none", "stop", "collect", "flip", "lose", "weights", "limits", "move"),
    *("rollback", "refuse", "retry", "retry some"),
)
FORGETTING = ("flip", "lose", "weights", "limits")
"""Events after which all rows may be computed."""
REASONS = (["decode_error"], ["timeout", "decode_error"], ["unreadable_shard"], RETRIED)
CHANGES = get_args(get_args(Change)[0])


@dataclass(frozen=True)
class Night:
    """The events before a night."""

    changes: list[Change]
    event: str
    number: int
    """Decides where the event happens."""
    days: int = 0
    """Days by which the clock advances; predictions may be one day old."""


@dataclass(frozen=True)
class Setting:
    """Settings of all nights."""

    input_format: str
    reuse: str
    by: bool
    """Whether parts lie in folders by the values of columns."""
    delta: bool
    same_partition: bool
    keep_versions: int


some_changes = st.lists(
    st.tuples(st.sampled_from(CHANGES), st.integers(0, 63), st.integers(0, 63)), max_size=5
)
some_night = st.builds(
    Night,
    *(some_changes, st.sampled_from(EVENTS), st.integers(0, 2**32 - 1)),
    st.sampled_from([0] * 9 + [1, 2, -1]),
)
some_setting = st.builds(
    Setting,
    *(st.sampled_from(sorted(FORMATS)), st.sampled_from(["inputs", "content"]), st.booleans()),
    *(st.booleans(), st.booleans(), st.integers(1, 3)),
)
WEEK = [
    Night([], "move", 0),
    Night([("set", 1, 3), ("break", 2, 0), ("break", 4, 1), ("rename", 3, 7)], "stop", 1),
    Night([("drop", 5, 2), ("touch", 1, 0), ("swap", 6, 4)], "retry some", 0),
    Night([("cut", 7, 0), ("mend", 0, 0), ("rename", 6, 8)], "rollback", 1),
    Night([("delete", 1, 0), ("touch", 4, 0), ("touch", 7, 0)], "none", 1, days=2),
    Night([("set", 5, 6), ("mend", 0, 0), ("zero", 5, 0)], "retry", 1),
    Night([("break", 3, 0)], "stop", 2, days=2),
    Night([("touch", 3, 0), ("break", 6, 0)], "retry some", 2),
    Night([("set", 4, 2)], "none", 0, days=1),
    Night([("add", 2, 0)], "refuse", 0, days=-1),
    Night([("set", 4, 3)], "none", 0, days=1),
    Night([("set", 2, 1), ("add", 5, 2)], "flip", 1, days=1),
    Night([("set", 3, 4)], "limits", 1),
]
"""Each change, and nearly each event, after a night with rows to carry."""
SETTINGS = (
    Setting("ids", "content", by=True, delta=True, same_partition=True, keep_versions=2),
    Setting("tars", "inputs", by=False, delta=False, same_partition=False, keep_versions=1),
)


class Nights:
    """A job over inputs that change, and its output."""

    def __init__(self, root: Path, setting: Setting) -> None:
        form = FORMATS[setting.input_format]
        self.root, self.setting = root, setting
        self.inputs = NightInputs(root / "in", form)
        out = Store(str(root / "out"))
        self.job = EarlierPartition(str(root / "in"), out, form.source, self.inputs.broken)
        self.job.weights = str(root / "weights.pt")
        sink = {"target_part_mib": 0.01, "keep_versions": setting.keep_versions}
        sink |= {"partition_columns": form.columns} if setting.by else {}
        self.job.sections = {
            "run": {"reuse": setting.reuse, "reuse_max_age_days": 1.5},
            "gates": {"allow_empty": True, "max_error_pct": 100.0},
            "sink": sink | ({"table": "delta"} if setting.delta else {}),
            **self.inputs.sections,
        }
        factories = {"texts": "models:mentions", "features": "models:carried_sums"}
        self.state = {
            "texts": lambda by: {"words": models.mentions().words + by},
            "features": lambda by: {"scale": torch.full((5,), 1.0 + by)},
        }.get(setting.input_format, lambda by: {k: v + by for k, v in colours_state().items()})
        if factory := factories.get(setting.input_format):
            self.job.sections["model"] = {"factory": factory}
        self.num_weights = self.num_limits = self.carried = 0
        self.computed: set[str] = set()
        """Rows that were computed in this night."""
        self.good: set[str] = set()
        """Rows that were predicted up to the night before."""
        self.last: dict[Facts, KnownShard] = {}
        """Shards that its version knows."""
        self.days: dict[Facts, set[int]] = {}
        """Days on which predictions of a shard were computed."""
        torch.save(self.state(0), self.job.weights)

    def go_on(self, night: Night, number: int) -> None:
        """Change the input, run, and compare with a run of all rows."""
        for change in night.changes:
            self.inputs.change(change)
        if not self.setting.same_partition:
            self.job.partition = f"date={FIRST + dt.timedelta(days=number)}"
        self.computed = set()
        self.happen(night, number)
        before = log_numbers(self.job.out, self.job.layout)
        self.job.run()
        self.computed |= {*self.job.computed}
        if log_numbers(self.job.out, self.job.layout) != before:
            self.check_counts()
        self.carried += int(self.job.current().carried.get("rows", 0))
        self.check_work(night.event)
        self.compare()
        if night.event == "retry some":
            self.retry(REASONS[night.number % 4], night.number)
        self.note()
        version = self.job.current().number
        assert self.job.run().number == version, "nothing to do"
        if night.event == "collect":
            collect_garbage(self.job.out, self.job.layout, grace_s=-3600.0)

    def happen(self, night: Night, number: int) -> None:
        """Do the event of a night, apart from changes of the input."""
        log = log_numbers(self.job.out, self.job.layout)
        if night.days or night.event in ("flip", "lose", "rollback", "refuse", "stop"):
            self.inputs.change(("add", 0, number))  # so that there is something to do
        if night.event in ("flip", "lose"):
            self.damage(random.Random(night.number), is_lost=night.event == "lose")
        elif night.event in ("weights", "limits"):
            self.change_model(night.event)
        elif night.event == "move":
            self.job.weights = str(Path(self.job.weights).rename(self.root / f"{number}.pt"))
        elif night.event == "refuse":
            gates = {"max_error_pct": 0.0, "min_rows": 1}
            if self.inputs.broken:
                with pytest.raises(GateRefused):
                    self.job.at(self.job.out, gates=gates).run()
            self.inputs.change(("touch", 0, 0))  # so that no staged slice is resumed
        elif night.event == "stop":
            points = ["tiled", "judged", "keys_written", "compacted"]
            fail_at(points[night.number % len(points)], self.job.run)
            self.computed |= {*self.job.computed}
        elif night.event in ("rollback", "retry") and log:
            self.roll_back(number) if night.event == "rollback" else self.job.retry()
            self.computed |= {*self.job.computed} if night.event == "retry" else set()
        self.job.today += night.days

    def retry(self, reasons: Sequence[str], number: int) -> None:
        """Make some rows readable and retry: only the rows asked for are computed, in order."""
        failed, is_unread_asked = self.job.content()[1], "unreadable_shard" in reasons
        if reasons != ["unreadable_shard"]:
            self.inputs.change(("mend", 0, number))
        if is_unread_asked:
            self.inputs.restore()
        if self.job.retry(*reasons) == "published":
            self.check_counts()
        unread = {row["shard"] for row in failed if row["reason"] == "unreadable_shard"}
        others = [row for row in failed if row["shard"] not in unread]
        asked = [row["row_id"] for row in others if row["reason"] in reasons]
        computed = [i for i in self.job.computed if self.shard_of(i) not in unread]
        assert computed == asked or (is_unread_asked and {*asked} <= {*computed})
        kept = [row for row in others if row["reason"] not in reasons]
        assert [row for row in self.job.content()[1] if row in kept] == kept
        stays = {row["row_id"] for row in kept if row["reason"] != "duplicate_id"}
        assert not stays & {*computed}
        self.compare()

    def check_counts(self) -> None:
        """Compare the counts of report and gates with the rows computed."""
        rows, current = self.job.report()["rows"], self.job.current()
        assert rows["computed"] == len(self.job.computed)
        done = rows["computed"] + (rows["resumed"] or 0) + (rows["carried"] or 0)
        retry = self.job.report()["retry"] or {"not_asked": 0, "duplicate_ids": 0}
        assert 0 <= rows["total"] - done <= retry["not_asked"] + retry["duplicate_ids"]
        assert current.carried.get("rows", 0) == (rows["carried"] or 0)
        gates = {gate["name"]: gate for gate in current.gates}
        errors = f"{len(self.job.content()[1])} of {current.num_rows} rows quarantined"
        assert gates["max_error_pct"]["message"].startswith(errors)
        checked = current.carried.get("checked_rows")
        assert not checked or gates["carried"]["message"].startswith(f"{checked} of ")

    def check_work(self, event: str) -> None:
        """Check that only checked known rows are computed, and that the others keep their day."""
        good, now, by_inputs = self.good_ids(), self.shards(), self.setting.reuse == "inputs"
        same, days = now.keys() & self.last.keys(), (self.job.today - 1, self.job.today)
        is_by_id = self.setting.input_format == "ids" and not by_inputs  # equal ids, equal rows
        uris = {uri for uri, _, _ in same}
        known = {i for i in good & self.good if is_by_id or self.shard_of(i) in uris}
        if is_by_id and event == "retry":
            known -= self.computed  # rows with an id of another, which may be gone
        is_fresh = all(shard.computed_day in days for shard in self.last.values())
        if event not in FORGETTING and is_fresh and self.computed:
            num_checked = self.job.current().carried.get("checked_rows", 0)
            if len(known) > 2 * LEAST_ROWS:
                assert len(known & self.computed) <= num_checked
            num_same = sum(now[facts].num_rows for facts in same)
            if num_same > 2 * LEAST_ROWS and event != "retry":
                assert num_checked >= LEAST_ROWS
        carried = {self.shard_of(row_id) for row_id in good - self.computed}
        for facts, shard in now.items():
            assert shard.computed_day in days, "too old, or of a day to come"
            if by_inputs and shard.uri in carried:
                assert shard.computed_day in self.days.get(facts, ()), shard

    def note(self) -> None:
        """Record what the next night knows."""
        self.good, self.last = self.good_ids(), self.shards()
        for facts, shard in self.last.items():
            self.days.setdefault(facts, set()).add(shard.computed_day)

    def good_ids(self) -> set[str]:
        return {row["row_id"] for row in self.job.content()[0]}

    def shards(self) -> dict[Facts, KnownShard]:
        table = read_shard_table(self.job.out, self.job.layout, self.job.current())
        shards = [shard for shard in table.shards if not shard.breaks_off]  # a retry's alone
        return {(shard.uri, shard.size_bytes, shard.version): shard for shard in shards}

    def shard_of(self, row_id: str) -> str:
        return Store(str(self.inputs.folder)).url(re.split("[#/]", row_id)[0])

    def change_model(self, event: str) -> None:
        """Change the weights, or the limits of the input of the model."""
        if event == "weights":
            self.num_weights += 1
            torch.save(self.state(self.num_weights), self.job.weights)
            return
        self.num_limits += 1
        if self.setting.input_format == "texts":
            text = {**self.inputs.sections["text"], "max_tokens": 16 - self.num_limits % 2}
            self.job.sections |= {"text": text}
        elif self.setting.input_format != "features":
            transform = {**models.TRANSFORM, "size_px": 32 - self.num_limits % 2}
            self.job.sections |= {"transform": transform}

    def damage(self, chance: random.Random, *, is_lost: bool) -> None:
        """Flip a bit of each file that predictions are carried from, or delete some files."""
        out = Path(self.job.out.uri)
        for path in sorted(out.rglob("*.parquet")):
            folders = path.relative_to(out).parts
            if not is_lost and not {"quarantine", "staging"}.intersection(folders):
                data, bit = bytearray(path.read_bytes()), chance.randrange(8 * path.stat().st_size)
                data[bit // 8] ^= 1 << bit % 8
                path.write_bytes(data)
            elif is_lost and {"keys", "history"}.intersection(folders) and chance.random() < 0.5:
                path.unlink()

    def roll_back(self, number: int) -> None:
        """Publish wrong predictions that nothing detects, and roll back."""
        store, layout, keep = self.job.out, self.job.layout, self.setting.keep_versions
        before = self.job.current().number
        self.job.reuse, self.job.drift = False, self.job.drift + 1
        self.job.run()
        self.job.reuse, self.job.drift = True, self.job.drift - 1
        if self.job.current().number > before:
            table = self.job.new_run().table
            rollback(store, layout, "by-hand", keep_versions=keep, to_number=before, table=table)
        self.inputs.change(("add", 0, number + 1))
        collect_garbage(store, layout, grace_s=-3600.0)

    def compare(self) -> None:
        """Compare what is published with what a run of all rows publishes."""
        sink = {**self.job.sections["sink"], "table": None, "target_part_mib": 16}
        whole = {"sink": sink, "run": {**self.job.sections["run"], "slice_rows": 1_000}}
        assert_as_all_computed(self.job, self.root, sections={**self.job.sections, **whole})
        if self.setting.delta and self.setting.same_partition:
            table = DeltaTable(f"{self.job.out.uri}/predictions").to_pyarrow_table()
            ids = [row["row_id"] for row in self.job.content()[0]]
            assert sorted(table["row_id"].to_pylist()) == sorted(ids)


def go_through(setting: Setting, nights: list[Night], folder: Path) -> int:
    """Return how many rows were carried over in all nights."""
    with tempfile.TemporaryDirectory(dir=folder) as name, pytest.MonkeyPatch.context() as patch:
        # Otherwise almost all of so few rows found by content would be checked.
        patch.setattr("pipeline.reuse.finding.check_probability", lambda *_, **__: 0.3)
        # Otherwise all known rows would be one slice.
        patch.setattr("pipeline.reuse.dividing._FEWEST_ROWS", 16)
        patch.setattr("pipeline.reuse.dividing._ASIDE_BYTES", 1)
        patch.setenv("XDG_CACHE_HOME", f"{name}/cache")
        output = Nights(Path(name), setting)
        for number, night in enumerate(nights):
            output.go_on(night, number)
        return output.carried


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.input_format)
def test_every_night_of_a_week_equals_a_full_recompute(setting: Setting, tmp_path: Path):
    assert go_through(setting, WEEK, tmp_path) > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("input_format", sorted(FORMATS))
@settings(
    max_examples=1,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    # To shrink thirty nights takes longer than to read them.
    phases=(Phase.explicit, Phase.generate),
)
@given(setting=some_setting, nights=st.lists(some_night, min_size=30, max_size=30))
def test_every_night_equals_a_full_recompute(
    input_format: str, setting: Setting, nights: list[Night], tmp_path: Path
):
    reuse = "content" if input_format == "uris" else setting.reuse
    setting = replace(setting, input_format=input_format, reuse=reuse)
    assert go_through(setting, nights, tmp_path) > 0
