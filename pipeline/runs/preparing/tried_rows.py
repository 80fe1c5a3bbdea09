"""Try some rows of a model that writes, in a task of Ray: how long they take, and their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.errors import PipelineError
from pipeline.core.figures.counters import PREFILL, Counters
from pipeline.core.figures.slice_figures import SliceFigures, Steps, Tokens
from pipeline.core.printable import clean_message
from pipeline.core.schema import NUM_INPUT_TOKENS, NUM_OUTPUT_TOKENS
from pipeline.core.user_code.user_errors import describe_user_error
from pipeline.execution.stages import Preprocessing
from pipeline.inference.engines import open_engine
from pipeline.inference.engines.base import Engine
from pipeline.models.spec import PredictorConfig
from pipeline.planning.probe import SLICE_S, Probe, Spread
from pipeline.planning.sampling import sample_rows
from pipeline.process.liveness import hang_guard, no_limit
from pipeline.sources.rows import Reader
from pipeline.sources.units import Unit

FIRST_ROWS = 8
"""They are tried before the others, and alone if they take long; fewer than 16 rows at once."""

_MAX_CHARS = 200
Floats = npt.NDArray[np.float64]


def try_rows(
    reader: Reader,
    sample: tuple[Sequence[Unit], int, int],
    preprocessing: Preprocessing | None,
    config: PredictorConfig,
    row_timeout_s: float,
    places: tuple[int, int, int],
) -> Probe | str:
    """Read, prepare and predict rows as an actor does.

    Args:
        reader: Reads them.
        sample: As `sample_rows` takes them: units, number of rows, and seed.
        preprocessing: As in actors.
        config: What an actor is made of; it keeps outputs that the job may refuse.
        row_timeout_s: This process is ended if it gets no further for so long.
        places: How many actors there may be, nodes, and slices of an actor at once.

    Returns:
        What they took, or why none could be tried; that is no failure of a run.
    """
    units, num_rows, seed = sample
    try:
        with hang_guard(row_timeout_s):
            rows = sample_rows(reader, units, num_rows, seed)
            if not rows.num_rows:
                return "none of them could be read"
            if preprocessing is not None:
                rows = preprocessing({}, rows)
            began = perf_counter()
            with no_limit():
                engine = open_engine(config)
            load_s = perf_counter() - began
            return _tried(engine, rows, config, load_s, places)
    except Exception as error:  # noqa: BLE001  # a run tells of a model that cannot be used
        told = str(error) if isinstance(error, PipelineError) else describe_user_error(error)
        return clean_message(told, _MAX_CHARS)


def _tried(
    engine: Engine,
    rows: pa.Table,
    config: PredictorConfig,
    load_s: float,
    places: tuple[int, int, int],
) -> Probe:
    order = np.random.default_rng(rows.num_rows).permutation(rows.num_rows)
    are_few = rows.num_rows < 2 * FIRST_ROWS
    figures, tried, spent_s = SliceFigures(), list[pa.Table](), 0.0
    num_rows = 0
    for chosen in [order] if are_few else (order[:FIRST_ROWS], order[FIRST_ROWS:]):
        # A step of a GPU takes as long for a full batch as for a few rows.
        size = max(len(chosen), config.batch_size if config.num_gpus else 0)
        counters: Counters = {}
        began = perf_counter()
        found = engine.predict(rows.take(pa.array(np.resize(chosen, size))), counters)
        spent_s += perf_counter() - began
        figures += SliceFigures.from_json(counters)
        tried.append(found.slice(0, len(chosen)))
        num_rows += size
        if spent_s > SLICE_S:
            break
    table = pa.concat_tables(tried)
    read, written = (_tokens(table, name) for name in (NUM_INPUT_TOKENS, NUM_OUTPUT_TOKENS))
    row_s = _row_s(figures, (read, written), spent_s, num_rows, config)
    of_read, of_written, of_row_s = (Spread.of(each.tolist()) for each in (read, written, row_s))
    return Probe(table.num_rows, of_read, of_written, of_row_s, load_s, *places)


def _row_s(
    figures: SliceFigures,
    tokens: tuple[Floats, Floats],
    spent_s: float,
    num_rows: int,
    config: PredictorConfig,
) -> Floats:
    """Return what rows take, (N,), in batches that are as full as those of a slice.

    Args:
        figures: Of all that was computed.
        tokens: Read and written of each of the N rows.
        spent_s: By all of `num_rows` rows, in which some of the N are repeated.
        num_rows: At least N.
        config: Says how large batches are.
    """
    read, written = tokens
    steps, num_read = figures.steps or Steps(), (figures.tokens or Tokens()).num_tokens
    prefill_s = figures.stage(PREFILL).busy_s
    other_s = (spent_s - prefill_s - steps.busy_s) / num_rows
    read_s = prefill_s / num_read if num_read else 0.0
    assert config.spec.task.generation is not None, "it writes"
    limits, longest = config.limits_of_batch, config.spec.task.generation.max_new_tokens
    longest += int(read.max())
    places = min(limits.rows, limits.tokens // longest) if limits.tokens else limits.rows
    return other_s + read_s * read + steps.row_s(max(1, places)) * written


def _tokens(rows: pa.Table, name: str) -> Floats:
    """Return the tokens of each row, (N,), none of one that has no prediction."""
    found: Floats = np.asarray(rows.column(name).fill_null(0)).astype(np.float64)
    return found
