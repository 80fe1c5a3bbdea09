"""Compare what is published with what a run would publish: differences, and what it would do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.commit.layout import Layout
from pipeline.commit.lease import hold_lease
from pipeline.commit.manifest import Manifest, current_or_unknown, require_one_key
from pipeline.commit.plan_store import named, read_plan
from pipeline.commit.publish import repair
from pipeline.commit.staging import list_staged
from pipeline.core.errors import InputMissing, PartitionBusy, PipelineError
from pipeline.core.printable import clean_message, num_of
from pipeline.job.job import Job
from pipeline.models.spec import EAGER, FP32
from pipeline.planning.plan import Plan
from pipeline.planning.predictor_key import why_other
from pipeline.published.status import PartitionStatus, survey
from pipeline.reuse.finding import find_reuse
from pipeline.runs.context import RunContext, RunOptions
from pipeline.runs.preparing.prepare import prepare
from pipeline.storage.store import Store

_INPUTS = "the input (a name, size or time of a shard)"
_PARTS = {
    "inputs": _INPUTS,
    "model": "the model or what decides its predictions",
    "settings": "the job's source or row limit",
}
_NAMES_SHOWN = 3
_WRITTEN_ANEW = "a shard was written anew, or its name or rights changed (its ctime is another one)"
_READABLE = "a shard that could not be opened then can be opened now"


def why_stale(store: Store, layout: Layout, published: Manifest, plan: Plan) -> str:
    """Name the shards, parts of the model and settings that changed since a version.

    Returns:
        '' if nothing that is known of it changed.
    """
    before, now = published.fingerprint_parts, plan.fingerprint_parts
    inputs = ""
    if before.get("inputs") != now.get("inputs"):
        try:
            inputs = shards_changed(read_plan(store, layout, published.plan_name), plan)
        except PipelineError:
            inputs = ""  # the names of the shards are a detail
    changed = what_changed(before, now, models=(published.model, plan.model), inputs=inputs)
    if not changed and is_written_anew(published, plan):
        return _WRITTEN_ANEW
    return changed or (_READABLE if has_more_rows(plan, published) else "")


def what_changed(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    models: tuple[Mapping[str, Any], Mapping[str, Any]] | None = None,
    inputs: str = "",
) -> str:
    """Return in words which `Plan.fingerprint_parts` differ.

    Args:
        before: Of the published version; {} if unknown.
        now: Of the plan.
        models: The model then and now, so that its parts can be named.
        inputs: The changes of the inputs, as of `shards_changed`.

    Returns:
        '' if none differ or `before` is unknown.
    """
    if not before:
        return ""
    words = _PARTS | ({"inputs": inputs} if inputs else {})
    if models and (why := why_other(*models)):
        words["model"] = why
    changed = [text for part, text in words.items() if before.get(part) != now.get(part)]
    then, areas = before.get("semantics", {}), now.get("semantics", {})
    changed += [
        f"how this version of the package computes ({area})"
        for area in sorted({*then, *areas})
        if then.get(area) != areas.get(area)
    ]
    old, new = before.get("extensions", {}), now.get("extensions", {})
    changed += [
        f"the code of {which}" for which in sorted({*old, *new}) if old.get(which) != new.get(which)
    ]
    return ", ".join(changed)


def shards_changed(before: Plan, now: Plan) -> str:
    """Return in words which shards differ: "the input: 5 shards new (a.jpg, b.jpg, ...), 1 gone".

    Returns:
        "the source has grown" if nothing is gone and no shard shrank. If no shard differs, the
        folder or the columns do.
    """
    old, new = _shards(before), _shards(now)
    was, root = (Store(plan.source_root).url() for plan in (before, now))
    if was != root:
        return f"the input (it was {clean_message(was)})"
    both = old.keys() & new.keys()
    changed = {path for path in both if old[path] != new[path]}
    gone = old.keys() - new.keys()
    changes = [
        _describe(new.keys() - old.keys(), "new"),
        _describe(changed, "changed"),
        _describe(gone, "gone"),
    ]
    has_grown = any(changes) and not gone and all(new[path][0] > old[path][0] for path in changed)
    what = "the source has grown" if has_grown else "the input"
    return f"{what}: " + (", ".join(filter(None, changes)) or "its columns or their types")


def _shards(plan: Plan) -> dict[str, tuple[int, str]]:
    return {e.path: (e.size_bytes, e.version) for unit in plan.units for e in unit.extents}


def _describe(paths: Iterable[str], state: str) -> str:
    names = sorted(paths)
    if not names:
        return ""
    shown = ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")
    return f"{num_of(len(names), 'shard')} {state} ({clean_message(shown)})"


def is_published(manifest: Manifest | None, plan: Plan, partition_columns: Sequence[str]) -> bool:
    """Tell whether a version equals the result of the plan."""
    if manifest is None or is_written_anew(manifest, plan) or has_more_rows(plan, manifest):
        return False
    if manifest.is_of(plan.fingerprint, partition_columns):
        return True
    is_exact = (manifest.model.get("runtime"), manifest.model.get("precision")) == (EAGER, FP32)
    return is_exact and bool(plan.twin) and manifest.is_of(plan.twin, partition_columns)


def next_step(current: Manifest | None, *, has_staged: bool) -> str:
    """Say what a run with something to do would do."""
    step = "publish the first version" if current is None else f"replace version {current.number}"
    return f"resume, then {step}" if has_staged else step


def is_written_anew(manifest: Manifest, plan: Plan) -> bool:
    """Tell whether a local shard was changed since, even if its size and mtime are the same."""
    then, now = manifest.ctimes_sha256, plan.ctimes_sha256
    return bool(then and now) and then != now


def has_more_rows(plan: Plan, manifest: Manifest) -> bool:
    """Tell whether a shard can be opened now that could not when a version was published."""
    num_rows = plan.num_rows or 0
    return bool(manifest.num_unreadable_shards) and num_rows > manifest.num_rows


def note_if_published(run: RunContext, manifest: Manifest | None, plan: Plan) -> bool:
    """Tell whether a version equals the result of the plan; note it if so."""
    if manifest is None or not is_published(manifest, plan, run.job.sink.partition_columns):
        return False
    run.record.already_published(manifest, run.store.url(run.layout.predictions))
    return True


def note_unchanged(run: RunContext) -> None:
    """Note that the published version stays, and complete the publication of a crashed run."""
    keep = run.job.sink.keep_versions
    current = repair(run.store, run.layout, keep, table=run.table, is_last=True)
    if current is not None:
        run.record.already_published(current, run.store.url(run.layout.predictions))


def tidy_if_free(run: RunContext) -> None:
    """Complete the publication of a run that crashed after its commit, unless another run works.

    Raises:
        PartitionBusy: The other run has to complete it.
    """
    try:
        with hold_lease(run.store, run.layout, run.record.run_id, run.job.run.lease_ttl_s):
            keep = run.job.sink.keep_versions
            repair(run.store, run.layout, keep, table=run.table, is_last=True)
    except PartitionBusy:
        from pipeline.published.verify import marker_problems  # imports pandas and fsspec

        if marker_problems(run.store, run.layout):  # exit 0 promises the success marker
            raise


def survey_job(job: Job, options: RunOptions) -> PartitionStatus:
    """Return the state of the partition of a job and what a run would do; writes nothing.

    The input is listed and the model resolved, as at the start of a run.
    """
    run = RunContext.of(job, options)
    (seen,) = survey(run.store, [run.layout.name])
    if seen.state == "running":
        return replace(seen, a_run_would="end with 4: it is running")
    try:
        return _compared(run.with_settled_source(), seen)
    except PipelineError as error:
        is_missing = isinstance(error, InputMissing)
        state = "no_input" if is_missing and seen.version is None else seen.state
        return replace(
            seen,
            state=state,
            why=str(error) if state == "no_input" else seen.why,
            a_run_would=f"end with {error.exit_code}: {error}",
        )


def _compared(run: RunContext, seen: PartitionStatus) -> PartitionStatus:
    store, layout = run.store, run.layout
    require_one_key(store, layout)
    plan, _ = prepare(run)
    current = current_or_unknown(store, layout)
    if is_published(current, plan, run.job.sink.partition_columns):
        return replace(seen, state="complete", why=None, a_run_would="do nothing")
    is_asked = run.options.reuse
    reuse = find_reuse(store, layout, run.job, plan, current, is_asked=is_asked)
    staged = list_staged(store, layout.staging(named(reuse.plan).work))
    would = next_step(current, has_staged=bool(staged))
    if current is None:
        state = "missing" if seen.state in ("unpublished", "no_input") else seen.state
        return replace(seen, state=state, a_run_would=would)
    if not current.is_known:
        return replace(seen, a_run_would=would)
    changed = why_stale(store, layout, current, plan) or "it was published with other settings"
    if seen.state != "complete":
        return replace(seen, a_run_would=f"{would}, which predates a change: {changed}")
    return replace(seen, state="stale", why=changed, a_run_would=would)
