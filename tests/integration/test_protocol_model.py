"""No run is lost when many run at once over a store that fails and loses answers.

A state machine starts runs, rollbacks, garbage collections and readers, lets each continue for a
few operations of the store, kills them, and lets leases expire, so that a run that was thought dead
continues beside its successor. After every step it compares the store with a small model, the
versions that were seen.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.runs.protocol import KEEP_VERSIONS, LAYOUT, LONG_AGO_S, run_once
from support.runs.published import Rows, make_plan, slice_table
from support.runs.published_rows import read_in_turn, read_part
from support.runs.stepping import Fault, Killed, Program

from pipeline.commit.garbage import collect_garbage
from pipeline.commit.lease import hold_lease
from pipeline.commit.manifest import Manifest, log_numbers, read_manifest
from pipeline.commit.publish import history_numbers, rollback
from pipeline.core import backoff
from pipeline.core.errors import InfraError, JobError, PartitionBusy, PublishConflict
from pipeline.published.verify import verify_output
from pipeline.storage.store import Store

pytestmark = pytest.mark.early

TTL_S = 1e6
"""Of every lease: no program renews it, and time passes only where a rule says so."""
EDITIONS = st.integers(1, 4)
FAIL_EVERY = st.sampled_from([2, 3, 0])
"""Attempts of one slice may differ: which rows fail is the attempt's own affair."""
FAULTS = st.sampled_from(["", "", "", "", "", "lost", "refused"])
PLACES = (
    *(
        "create .*/log/",
        "copy .*/predictions/",
        "copy .*/history/",
        "put .*/current.json",
        "delete",
    ),
    *("create .*/lease/", "put .*/staging/", "list .*/staging", "open .*/predictions/"),
)
"""Operations before which a program may stop for long."""
MAX_PROGRAMS = 5
EXPECTED = {
    "run": (PartitionBusy, PublishConflict, InfraError),
    "rollback": (PartitionBusy, PublishConflict, InfraError, JobError),
    "collect": (PartitionBusy, InfraError),
    "read": (JobError, InfraError),
}
steps: Counter[str] = Counter()


def rows_of(edition: int) -> Rows:
    return Rows(edition, rows_per_slice=4, num_slices=2 + edition % 2, slices_per_part=1)


@dataclass(frozen=True)
class Version:
    """What is known of an entry of the log since it was first seen."""

    data: bytes
    manifest: Manifest
    edition: int
    predicted: frozenset[str]


class Protocol(RuleBasedStateMachine):
    """One partition, the programs that work on it, and every version that it ever had."""

    def __init__(self) -> None:
        super().__init__()
        shared_memory = Path("/dev/shm")
        place = str(shared_memory) if shared_memory.is_dir() else None
        self.folder = Path(tempfile.mkdtemp(prefix="protocol-", dir=place))
        self.store = Store(str(self.folder))
        self.programs: list[Program] = []
        self.versions: list[Version] = []
        self.digests: dict[tuple[str, int], str] = {}
        self.is_untidy = False
        """A program ended before the folder was settled."""
        self.has_late_list = False
        """The last to write `current.json` was an overtaken run: nothing prevents it."""
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(backoff, "FIRST_WAIT_S", 0.0)
        names = random.Random(0)
        self.patch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=names.getrandbits(128), version=4))

    # ---------------------------------------------------------------- what may happen

    def start(self, name: str, body: Callable[[Store], object]) -> None:
        steps[name] += 1
        self.programs.append(Program(name, self.store.uri, body))

    def has_room(self) -> bool:
        return len(self.programs) < MAX_PROGRAMS

    @initialize(editions=st.lists(EDITIONS, max_size=3))
    def begin(self, editions: list[int]) -> None:
        for edition in editions:
            run_once(self.store, rows_of(edition))
            self.look_at_the_log()

    @precondition(has_room)
    @rule(edition=EDITIONS, fail_every=FAIL_EVERY, is_rival=st.booleans())
    def start_a_run(self, edition: int, fail_every: int, is_rival: bool) -> None:
        if is_rival:
            self.let_leases_run_out()
        rows = rows_of(edition)

        def make(_: Rows, index: int) -> pa.Table:
            return slice_table(replace(rows, fail_every=fail_every), index)

        self.start("run", lambda store: run_once(store, rows, ttl_s=TTL_S, make=make))

    @precondition(has_room)
    @rule(name=st.sampled_from(["read", "rollback", "collect"]), is_rival=st.booleans())
    def start_another(self, name: str, is_rival: bool) -> None:
        if is_rival:
            self.let_leases_run_out()
        first = len(self.versions)

        def roll_back(store: Store) -> Manifest:
            with hold_lease(store, LAYOUT, "back", TTL_S):
                return rollback(store, LAYOUT, "back", keep_versions=KEEP_VERSIONS)

        def collect(store: Store) -> None:
            with hold_lease(store, LAYOUT, "gc", TTL_S):
                collect_garbage(store, LAYOUT, grace_s=LONG_AGO_S)
            # It was late. What a run needs that has overtaken it is young, but here nothing is.
            self.is_untidy |= len(self.versions) > first

        def read(store: Store) -> tuple[int, pa.Table]:
            return first, read_in_turn(store, LAYOUT)

        self.start(name, {"rollback": roll_back, "collect": collect, "read": read}[name])

    @precondition(lambda self: self.programs)
    @rule(which=st.integers(0, 99), turns=st.integers(1, 9), fault=FAULTS)
    def go_on(self, which: int, turns: int, fault: Fault) -> None:
        program = self.programs[which % len(self.programs)]
        self.advance(program, turns, fault)

    @precondition(lambda self: self.programs)
    @rule(which=st.integers(0, 99), turns=st.integers(10, 60))
    def go_far(self, which: int, turns: int) -> None:
        self.advance(self.programs[which % len(self.programs)], turns, "")

    @precondition(lambda self: self.programs)
    @rule(which=st.integers(0, 99), place=st.sampled_from(PLACES))
    def go_up_to(self, which: int, place: str) -> None:
        """Stop it right before something that others may do meanwhile."""
        program = self.programs[which % len(self.programs)]
        self.advance(program, 1, "")
        while not program.is_over and not re.match(place, program.pending):
            self.advance(program, 1, "")

    @precondition(lambda self: self.programs)
    @rule(which=st.integers(0, 99), is_killed=st.booleans())
    def end_one_badly(self, which: int, is_killed: bool) -> None:
        """Kill it, or let its store be gone for longer than it has patience."""
        program = self.programs[which % len(self.programs)]
        if is_killed:
            program.kill()
        for _ in range(2 * backoff.TRIES):
            if not program.is_over:
                program.step("refused")
        self.bury(program)

    @rule()
    def let_leases_run_out(self) -> None:
        """A program that holds one is taken for dead from now on, and does not know it."""
        for path in (self.folder / LAYOUT.leases).glob("*"):
            then = path.stat().st_mtime - 2 * TTL_S
            os.utime(path, (then, then))

    @precondition(lambda self: self.programs)
    @rule()
    def let_all_end(self) -> None:
        for program in list(self.programs):
            while not program.is_over:
                self.advance(program, 1, "")
        if self.versions and not self.is_untidy:
            self.assert_settled()

    # ---------------------------------------------------------------- what must hold

    def advance(self, program: Program, turns: int, fault: Fault) -> None:
        for turn in range(turns):
            if not program.is_over:
                is_list = re.match("put .*/current.json", program.pending)
                program.step(fault if turn == 0 else "")
                self.look_at_the_log()
                if is_list and (number := self.listed_number()) is not None:
                    self.has_late_list = number < len(self.versions)
        if program.is_over:
            self.bury(program)

    def bury(self, program: Program) -> None:
        """Look at how a program ended."""
        if not program.is_over:
            return
        self.programs.remove(program)
        error = program.error
        if error is not None and not isinstance(error, (Killed, *EXPECTED[program.name])):
            raise error
        if isinstance(error, Killed | InfraError):
            self.is_untidy = True
        steps[f"{program.name}: {type(error or program.result).__name__}"] += 1
        if program.name == "read" and error is None:
            self.check_reading(*program.result)

    def look_at_the_log(self) -> None:
        """Entries are never changed, and each is whole and complete when it appears."""
        numbers = log_numbers(self.store, LAYOUT)
        assert numbers == list(range(1, len(numbers) + 1))
        for number in numbers:
            data = self.store.read_bytes(LAYOUT.log_entry(number))
            if number <= len(self.versions):
                assert data == self.versions[number - 1].data
            else:
                self.versions.append(self.examine(number, data))

    def examine(self, number: int, data: bytes) -> Version:
        """Look at a version that has just become current: every planned row is in it once."""
        manifest = read_manifest(self.store, LAYOUT, number)
        edition = next(e for e in range(1, 5) if rows_of(e).fingerprint == manifest.fingerprint)
        good = pa.concat_tables([read_part(self.store, part) for part in manifest.parts])
        bad = [read_part(self.store, part) for part in manifest.quarantine_parts]
        predicted = good["row_id"].to_pylist()
        quarantined = [row_id for table in bad for row_id in table["row_id"].to_pylist()]
        rows = rows_of(edition)
        planned = [row_id for index in range(rows.num_slices) for row_id in rows.ids(index)]
        assert sorted(predicted + quarantined) == sorted(planned)
        assert set(good["edition"].to_pylist()) <= {edition}
        assert manifest.num_predicted == len(predicted)
        assert manifest.num_quarantined == len(quarantined)
        return Version(data, manifest, edition, frozenset(predicted))

    def check_reading(self, first: int, table: pa.Table) -> None:
        """What was read is one of the versions that were current meanwhile."""
        edition_read = frozenset(table["row_id"].to_pylist()), set(table["edition"].to_pylist())
        possible = self.versions[max(0, first - 1) :]
        assert edition_read in [(v.predicted, {v.edition}) for v in possible]

    @invariant()
    def every_part_of_the_current_version_is_there(self) -> None:
        steps["steps"] += 1
        self.look_at_the_log()
        for part in self.versions[-1].manifest.all_parts if self.versions else ():
            path = self.folder / part.path
            key = (part.path, path.stat().st_mtime_ns)
            if key not in self.digests:
                self.digests[key] = hashlib.sha256(path.read_bytes()).hexdigest()
            assert self.digests[key] == part.sha256

    @invariant()
    def every_part_that_is_listed_is_there(self) -> None:
        number = self.listed_number()
        if number is None or self.has_late_list:
            return
        steps["lists"] += 1
        for part in self.versions[number - 1].manifest.all_parts:
            assert (self.folder / part.path).exists()

    def listed_number(self) -> int | None:
        """The version that `current.json` is the copy of."""
        path = self.folder / LAYOUT.current
        if not path.exists():
            return None
        number = Manifest.from_json(path.read_bytes(), str(path)).number
        assert path.read_bytes() == self.versions[number - 1].data
        return number

    def assert_settled(self) -> None:
        """The folder is exactly the current version, the list its copy, the history its own."""
        verify_output(self.store.uri, LAYOUT.partition, {})
        current = self.versions[-1].manifest.parts
        replaced = [v.manifest.number for v in self.versions if v.manifest.parts != current]
        assert history_numbers(self.store, LAYOUT) == replaced[-KEEP_VERSIONS:]

    def teardown(self) -> None:
        try:
            for program in self.programs:
                program.kill()
            self.look_at_the_log()
            self.let_leases_run_out()
            rows = rows_of(1 + len(self.versions) % 4)
            last = run_once(self.store, rows).manifest
            self.look_at_the_log()
            assert self.versions[-1].manifest == last
            assert last.fingerprint == make_plan(rows).fingerprint
            self.assert_settled()
            collect_garbage(self.store, LAYOUT, grace_s=LONG_AGO_S)
            self.assert_settled()
            assert self.store.list_leftovers() == []
        finally:
            self.patch.undo()
            shutil.rmtree(self.folder)


def check(num_examples: int, num_steps: int) -> None:
    steps.clear()
    run_state_machine_as_test(
        Protocol,
        settings=settings(
            max_examples=num_examples,
            stateful_step_count=num_steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(dict(steps))


def test_no_order_of_events_breaks_a_promise():
    check(num_examples=8, num_steps=50)
    # Hypothesis takes values from the modules that are imported, so others run other examples.
    assert steps["steps"] >= 150
    assert steps["lists"] >= 80
    assert steps["run: Done"] >= 6


@pytest.mark.slow
def test_no_long_order_of_events_breaks_a_promise():
    check(num_examples=400, num_steps=100)
