"""Thirty nights in a row, with other files each: what is published is as if all were computed."""

from __future__ import annotations

import datetime as dt
import os
import tempfile
from pathlib import Path

import models
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.models.model_cases import colours_state
from support.runs.earlier_partitions import EarlierPartition
from support.runs.retry_runs import image

from pipeline.commit.published.verify import verify_output
from pipeline.storage.store import Store

NIGHTS = 30
OTHER_WEIGHTS, OTHER_TRANSFORM = 10, 20
FIRST = dt.date(2026, 11, 1)
NAMES = [f"{name}/{number:02d}.jpg" for name in "ab" for number in range(30)]
Change = tuple[str, str, int]
"""What is done, to which file, and with which content or other file."""

changes = st.lists(
    st.tuples(
        st.sampled_from(["write", "delete", "rename", "touch", "break", "mend"]),
        st.sampled_from(NAMES),
        st.integers(0, len(NAMES) - 1),
    ),
    max_size=6,
)


def apply(folder: Path, broken: set[str], change: Change, nth: int) -> None:
    what, name, number = change
    path, other = folder / name, folder / NAMES[number]
    if what == "write":  # of few contents, so that some are there twice
        path.write_bytes(image(number % 7))
        broken.discard(name)
    elif what == "delete":
        path.unlink(missing_ok=True)
    elif what == "rename" and path.exists():
        path.rename(other)
        broken.difference_update({name, NAMES[number]})
    elif what == "touch" and path.exists():
        os.utime(path)
    elif what == "break":  # its new content cannot be decoded until the decoder is mended
        path.write_bytes(image(1000 + nth))
        broken.add(name)
    elif what == "mend":
        broken.discard(name)


@settings(
    max_examples=3,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(
        Phase.explicit,
        Phase.generate,
    ),  # to shrink thirty nights takes longer than to read them
)
@given(
    nights=st.lists(changes, min_size=NIGHTS, max_size=NIGHTS),
    same_partition=st.booleans(),
    keep_versions=st.integers(1, 3),
    reuse=st.sampled_from(["inputs", "content"]),
)
@pytest.mark.slow
def test_each_night_is_as_if_all_rows_were_computed(
    nights: list[list[Change]], same_partition: bool, keep_versions: int, reuse: str
):
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        folder = root / "in"
        for part in "ab":
            (folder / part).mkdir(parents=True)
        for number, each in enumerate(NAMES):
            (folder / each).write_bytes(image(number))
        night = EarlierPartition(str(folder), Store(str(root / "out")), {"format": "images"})
        night.weights = str(root / "weights.pt")
        torch.save(colours_state(), night.weights)
        sink = {"target_part_mib": 1.0, "keep_versions": keep_versions}
        night.sections = {"run": {"reuse": reuse}, "sink": sink}
        night.sections |= {"gates": {"allow_empty": True, "max_error_pct": 100.0}}
        carried = 0
        for number, todo in enumerate(nights):
            for nth, change in enumerate(todo):
                apply(folder, night.broken, change, 10 * number + nth)
            if number == OTHER_WEIGHTS:
                torch.save({k: v + 1 for k, v in colours_state().items()}, night.weights)
            if number == OTHER_TRANSFORM:
                night.sections["transform"] = {**models.TRANSFORM, "size_px": 16}
            if not same_partition:
                night.partition = f"date={FIRST + dt.timedelta(days=number)}"
            night.run()
            rows = int(night.current().carried.get("rows", 0))
            if number in (OTHER_WEIGHTS, OTHER_TRANSFORM) and night.computed:
                assert rows == 0
            carried += rows
            whole = EarlierPartition(
                *(night.inputs, Store(str(root / f"whole-{number}")), night.source),
                *(set(night.broken), night.sections, night.weights),
                reuse=False,
                partition=night.partition,
            )
            whole.run()
            assert night.content() == whole.content()
            assert night.current().fingerprint == whole.current().fingerprint
            assert night.current().row_id_hash == whole.current().row_id_hash
        assert verify_output(night.out.uri, night.partition, {})["status"] == "ok"
        assert carried > 0
