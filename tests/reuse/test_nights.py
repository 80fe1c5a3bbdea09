"""Many nights in a row, and what happens between them: each is as if all rows were computed."""

from __future__ import annotations

import datetime as dt
import random
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import models
import pytest
import torch
from deltalake import DeltaTable
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.models.model_cases import colours_state
from support.runs.carried_runs import age_versions, assert_as_all_computed, stop_at
from support.runs.earlier_partitions import EarlierPartition
from support.runs.night_inputs import KINDS, Change, NightInputs

from pipeline.commit.manifest import log_numbers
from pipeline.commit.published.garbage import collect_garbage
from pipeline.commit.published.rollback import rollback
from pipeline.storage.store import Store

FIRST = dt.date(2026, 11, 1)
NIGHTS = 30
EVENTS = (
    *("none", "none", "stop", "collect", "flip", "lose", "weights", "limits"),
    *("older", "to come", "rollback", "retry", "retry some"),
)
CHANGES = [
    *("add", "set", "drop", "delete", "rename", "touch", "swap", "break", "mend", "zero", "cut")
]


@dataclass(frozen=True)
class Night:
    """What happens before one."""

    changes: list[Change]
    event: str
    number: int
    """Decides where the event happens."""


@dataclass(frozen=True)
class Setting:
    """What stays as it is over all nights."""

    kind: str
    reuse: str
    by: bool
    """Parts lie in folders by the values of columns."""
    delta: bool
    same_partition: bool
    keep_versions: int


some_changes = st.lists(
    st.tuples(st.sampled_from(CHANGES), st.integers(0, 63), st.integers(0, 63)), max_size=5
)
some_night = st.builds(Night, some_changes, st.sampled_from(EVENTS), st.integers(0, 2**32 - 1))
some_setting = st.builds(
    Setting,
    *(st.sampled_from(sorted(KINDS)), st.sampled_from(["inputs", "content"]), st.booleans()),
    *(st.booleans(), st.booleans(), st.integers(1, 3)),
)
WEEK = [
    Night([], "none", 0),
    Night([("set", 1, 3), ("break", 2, 0), ("break", 4, 1), ("rename", 3, 7)], "stop", 1),
    Night([("drop", 5, 2), ("touch", 1, 0), ("swap", 6, 4)], "retry some", 0),
    Night([("cut", 7, 0), ("mend", 0, 0), ("rename", 6, 8)], "rollback", 1),
    Night([("delete", 1, 0), ("touch", 4, 0), ("touch", 7, 0)], "older", 1),
    Night([("set", 5, 6), ("mend", 0, 0), ("zero", 5, 0)], "retry", 1),
    Night([("set", 2, 1), ("add", 5, 2)], "flip", 1),
    Night([("set", 3, 4)], "limits", 1),
]
"""Each change, and nearly each event, after a night that has something to take over."""
SETTINGS = (
    Setting("ids", "content", by=True, delta=True, same_partition=True, keep_versions=2),
    Setting("tars", "inputs", by=False, delta=False, same_partition=False, keep_versions=1),
)


class Nights:
    """A job over inputs that change, and what it has published."""

    def __init__(self, root: Path, setting: Setting) -> None:
        kind = KINDS[setting.kind]
        self.root, self.setting = root, setting
        self.inputs = NightInputs(root / "in", kind)
        out = Store(str(root / "out"))
        self.job = EarlierPartition(str(root / "in"), out, kind.source, self.inputs.broken)
        self.job.weights = str(root / "weights.pt")
        sink = {"target_part_mib": 0.01, "keep_versions": setting.keep_versions}
        sink |= {"partition_columns": kind.columns} if setting.by else {}
        self.job.sections = {
            "run": {"reuse": setting.reuse, "reuse_max_age_days": 1.5},
            "gates": {"allow_empty": True, "max_error_pct": 100.0},
            "sink": sink | ({"table": "delta"} if setting.delta else {}),
            **self.inputs.sections,
        }
        model = {"texts": "models:mentions", "features": "models:carried_sums"}.get(setting.kind)
        self.state = {
            "texts": lambda by: {"words": models.mentions().words + by},
            "features": lambda by: {"scale": torch.full((5,), 1.0 + by)},
        }.get(setting.kind, lambda by: {k: v + by for k, v in colours_state().items()})
        if model:
            self.job.sections["model"] = {"factory": model}
        self.num_weights = self.num_limits = self.carried = 0
        torch.save(self.state(0), self.job.weights)

    def go_on(self, night: Night, number: int) -> None:
        """Let things happen, run, and compare with a run of all rows."""
        for change in night.changes:
            self.inputs.change(change)
        if not self.setting.same_partition:
            self.job.partition = f"date={FIRST + dt.timedelta(days=number)}"
        self.happen(night, number)
        self.job.run()
        self.carried += int(self.job.current().carried.get("rows", 0))
        self.compare()
        if night.event == "retry some":
            reasons = [["decode_error"], ["timeout", "decode_error"], ["unreadable_shard"], []]
            asked = reasons[night.number % 4]
            if asked != ["unreadable_shard"]:
                self.inputs.change(("mend", 0, night.number))
            self.job.retry(*asked)
            self.compare()
        if night.event == "collect":
            collect_garbage(self.job.out, self.job.layout, grace_s=-3600.0)

    def happen(self, night: Night, number: int) -> None:
        """Let happen what does not happen to the input."""
        log = log_numbers(self.job.out, self.job.layout)
        if night.event in ("older", "to come", "flip", "lose", "rollback", "stop"):
            self.inputs.change(("add", 0, number))  # so that there is something to do
        if night.event in ("older", "to come"):
            self.age(2 if night.event == "older" else -1)
        elif night.event in ("flip", "lose"):
            self.damage(random.Random(night.number), is_lost=night.event == "lose")
        elif night.event in ("weights", "limits"):
            self.change_model(night.event)
        elif night.event == "stop":
            points = ["tiled", "judged", "keys_written", "compacted"]
            stop_at(points[night.number % len(points)], self.job.run)
        elif night.event in ("rollback", "retry") and log:
            self.roll_back(number) if night.event == "rollback" else self.job.retry()

    def change_model(self, event: str) -> None:
        """Take other weights, or other limits of what the model is given."""
        if event == "weights":
            self.num_weights += 1
            torch.save(self.state(self.num_weights), self.job.weights)
            return
        self.num_limits += 1
        if self.setting.kind == "texts":
            text = {**self.inputs.sections["text"], "max_tokens": 16 - self.num_limits % 2}
            self.job.sections |= {"text": text}
        elif self.setting.kind != "features":
            transform = {**models.TRANSFORM, "size_px": 32 - self.num_limits % 2}
            self.job.sections |= {"transform": transform}

    def age(self, days: int) -> None:
        """Let all versions have been computed earlier, so that none of their rows may be taken."""
        self.job.drift += 1
        # What is staged of the same files is gone on from, whatever became of its version.
        collect_garbage(self.job.out, self.job.layout, grace_s=-3600.0)
        age_versions(self.job.out, days)

    def damage(self, chance: random.Random, *, is_lost: bool) -> None:
        """Flip a bit of each file that predictions are taken from, or of some lose all."""
        names = ["*/predictions/**/part-*.parquet", "**/keys/*/*.parquet", "**/history/*/**/part-*"]
        root = self.root / "out"
        for path in sorted(p for name in names for p in root.parent.glob(name) if p.is_file()):
            if (
                is_lost
                and "predictions" not in path.parts[len(root.parts)]
                and chance.random() < 0.5
            ):
                path.unlink()
            elif not is_lost:
                data = bytearray(path.read_bytes())
                bit = chance.randrange(8 * len(data))
                data[bit // 8] ^= 1 << bit % 8
                path.write_bytes(data)

    def roll_back(self, number: int) -> None:
        """Publish what is wrong in a way that nothing tells, and take it back."""
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
        sink = {key: each for key, each in self.job.sections["sink"].items() if key != "table"}
        assert_as_all_computed(self.job, self.root, sections={**self.job.sections, "sink": sink})
        if self.setting.delta and self.setting.same_partition:
            table = DeltaTable(f"{self.job.out.uri}/predictions").to_pyarrow_table()
            ids = [row["row_id"] for row in self.job.content()[0]]
            assert sorted(table["row_id"].to_pylist()) == sorted(ids)


def go_through(setting: Setting, nights: list[Night], folder: Path) -> int:
    """Return how many rows were carried over in all nights."""
    with tempfile.TemporaryDirectory(dir=folder) as name, pytest.MonkeyPatch.context() as patch:
        # Of so few rows that are found by content almost all would be checked.
        patch.setattr("pipeline.reuse.finding.check_probability", lambda *_, **__: 0.3)
        patch.setenv("XDG_CACHE_HOME", f"{name}/cache")
        output = Nights(Path(name), setting)
        for number, night in enumerate(nights):
            output.go_on(night, number)
        return output.carried


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.kind)
def test_each_night_of_a_week_is_as_if_all_rows_were_computed(setting: Setting, tmp_path: Path):
    assert go_through(setting, WEEK, tmp_path) > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", sorted(KINDS))
@settings(
    max_examples=1,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    # To shrink thirty nights takes longer than to read them.
    phases=(Phase.explicit, Phase.generate),
)
@given(setting=some_setting, nights=st.lists(some_night, min_size=NIGHTS, max_size=NIGHTS))
def test_each_night_is_as_if_all_rows_were_computed(
    kind: str, setting: Setting, nights: list[Night], tmp_path: Path
):
    reuse = "content" if kind == "uris" else setting.reuse
    assert go_through(replace(setting, kind=kind, reuse=reuse), nights, tmp_path) > 0
