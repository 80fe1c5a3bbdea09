"""Column names and Arrow schemas, spelled in this one place."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import pyarrow as pa

OUTPUT_SCHEMA_VERSION = 1

ROW_ID, URI, IMAGE, FEATURES = "row_id", "uri", "image", "features"
WIDTHS = b"widths"
"""Key in the metadata of the field `FEATURES`: a JSON list with the length of each feature that is
a list, 0 for others; not there if none is."""
NUM_TOKENS, TRUNCATED = "num_tokens", "truncated"
WIDTH_PX, HEIGHT_PX, DURATION_S = "width_px", "height_px", "duration_s"
ERROR, ERROR_STAGE, MESSAGE = "error", "error_stage", "message"
SHA256, NUM_BYTES = "sha256", "num_bytes"
LABEL, LABEL_ID, SCORE, TOP_K = "label", "label_id", "score", "top_k"
EMBEDDING, EMBEDDINGS, VALUE = "embedding", "embeddings", "value"
LABELS, ENTITIES, DETECTIONS = "labels", "entities", "detections"
WINDOWS, MAX_TOP_K, MAX_LABELS = "windows", "max_top_k", "max_labels"
WEIGHTS, TOKEN_ID, WEIGHT = "weights", "token_id", "weight"
START, END, ENTITY_TEXT = "start", "end", "text"
OUTPUT_TEXT, FINISH_REASON, MEAN_LOGPROB = "text", "finish_reason", "mean_logprob"
SEGMENTS = "segments"
NUM_INPUT_TOKENS, NUM_OUTPUT_TOKENS = "num_input_tokens", "num_output_tokens"

_FAILURE_FIELDS = [
    pa.field(ERROR, pa.string()),
    pa.field(ERROR_STAGE, pa.string()),
    pa.field(MESSAGE, pa.string()),
    pa.field(SHA256, pa.string()),
    pa.field(NUM_BYTES, pa.int64()),
]
# Columns of rows in transit, which no output has: see core/rows_set_aside.py,
# preprocessing/reference_pixels, preprocessing/geometry, sources/formats/parquet and
# sources/columns/texts.
# Those of texts and clips are no plain `text` and `audio`, for jobs pass columns of these names
# through.
IS_COMPUTED, SOURCE, EXACT = "_is_computed", "_source", "_exact_image"
TEXT, TEXT_PAIR = "_text", "_text_pair"
TEXT_OF = "_text_of_"
"""How columns in transit begin whose texts a prompt names; then comes the name of the column."""
AUDIO = "_audio"
TOKEN_IDS, TOKEN_TYPES = "_token_ids", "_token_types"
OFFSETS, WORD_IDS = "_offsets", "_word_ids"
TEXT_FEATURE = "_feature_"
"""How columns in transit of features that are texts begin; then comes the name of the column."""
GEOMETRY = "_geometry"
IMAGE_HEIGHT_PX, IMAGE_WIDTH_PX = "_image_height_px", "_image_width_px"
"""Size of the model input, if images keep their own sizes."""


INPUT_HASH = "input_hash"
"""The 128-bit hash of the model input of a row, in parts of jobs with `reuse: content`."""
SHARD, ROW = "shard", "row"
"""In the quarantine: the URI of a row's shard, and its number there."""

PART = "_in_"
"""How columns in transit of one of several inputs begin: `_in_photo_image`, `_in_caption__text`."""


def file_name_of(column: str) -> str:
    """Return what a column of a row's input is called in files that people write: `text`.

    Those of several inputs have the name of theirs before it: `photo_image`, `caption_text`.
    """
    if column.startswith(PART):
        return column.removeprefix(PART).replace("__", "_")
    return column.removeprefix("_")


def input_column(part: str, column: str) -> str:
    """Return the name in transit of a column of one of several inputs."""
    return f"{PART}{part}_{column}"


def columns_of_part(part: str, parts: Iterable[str], columns: Iterable[str]) -> dict[str, str]:
    """Return the columns in transit of one of several inputs: name -> its name if it were the only.

    Args:
        part: The input.
        parts: All inputs; one may begin with the name of another one.
        columns: All columns of rows.
    """
    longer = [f"{PART}{other}_" for other in parts if other.startswith(f"{part}_")]
    prefix = f"{PART}{part}_"
    return {
        name: name.removeprefix(prefix)
        for name in columns
        if name.startswith(prefix) and not name.startswith(tuple(longer))
    }


RESERVED_COLUMNS = frozenset(
    [
        IS_COMPUTED,
        SOURCE,
        INPUT_HASH,
        EXACT,
        GEOMETRY,
        IMAGE_HEIGHT_PX,
        IMAGE_WIDTH_PX,
        ROW_ID,
        URI,
        IMAGE,
        FEATURES,
        TEXT,
        TEXT_PAIR,
        AUDIO,
        TOKEN_IDS,
        TOKEN_TYPES,
        OFFSETS,
        WORD_IDS,
        LABEL,
        LABEL_ID,
        SCORE,
        TOP_K,
        "unit",
        "row",
        "stage",
        "reason",
        "run_id",
    ]
    + [field.name for field in _FAILURE_FIELDS]
)
_ENTRY = (
    pa.field(LABEL, pa.string()),
    pa.field(LABEL_ID, pa.int32()),
    pa.field(SCORE, pa.float32()),
)
CLASSIFY_FIELDS = (*_ENTRY, pa.field(TOP_K, pa.list_(pa.struct(_ENTRY))))
"""Columns of task `classify`."""
MAX_TOP_K_FIELD = pa.field(MAX_TOP_K, pa.list_(pa.struct(_ENTRY)))
"""Column of task `classify` beside these, of the maxima over the windows of a text."""
LABELS_FIELD = pa.field(LABELS, pa.list_(pa.struct(_ENTRY)))
"""Column of task `multilabel`."""
MAX_LABELS_FIELD = pa.field(MAX_LABELS, pa.list_(pa.struct(_ENTRY)))
"""Its column of the maxima over the windows of a text."""
ENTITIES_FIELD = pa.field(
    ENTITIES,
    pa.list_(
        pa.struct(
            [
                pa.field(START, pa.int32()),
                pa.field(END, pa.int32()),
                pa.field(ENTITY_TEXT, pa.string()),
                pa.field(LABEL, pa.string()),
                pa.field(SCORE, pa.float32()),
            ]
        )
    ),
)
"""Column of task `tokens`; start and end are in characters of the text."""

GENERATE_FIELDS = (
    pa.field(OUTPUT_TEXT, pa.string()),
    pa.field(NUM_INPUT_TOKENS, pa.int32()),
    pa.field(NUM_OUTPUT_TOKENS, pa.int32()),
    pa.field(FINISH_REASON, pa.string()),
    pa.field(MEAN_LOGPROB, pa.float32()),
)
"""Columns of task `generate`; tokens that end a text are counted."""
SEGMENTS_FIELD = pa.field(
    SEGMENTS,
    pa.list_(pa.struct({"start_s": pa.float64(), "end_s": pa.float64(), "text": pa.string()})),
)
"""Further column of task `generate` with timestamps; times are in seconds of the clip."""

_FLOAT32 = pa.float32()
IMAGE_FIELDS = pa.schema([pa.field(IMAGE, pa.large_binary())])
"""What sources of images yield: the encoded image, null if `error` is set."""
AUDIO_FIELDS = pa.schema([pa.field(AUDIO, pa.large_binary())])
"""What sources of clips of sound yield, likewise."""


def feature_fields(
    num_features: int, texts: Iterable[str] = (), number: pa.DataType = _FLOAT32
) -> pa.Schema:
    """Return what sources of features yield: a vector per row, zeros if `error` is set.

    Args:
        num_features: Its length; of 0 there is none.
        texts: Columns whose texts stay as they are, beside it, null if `error` is set.
        number: The type of its numbers.
    """
    vector = [pa.field(FEATURES, pa.list_(number, num_features))] if num_features else []
    return pa.schema(
        [*vector, *(pa.field(TEXT_FEATURE + name, pa.large_string()) for name in texts)]
    )


def widths_of(fields: pa.Schema) -> tuple[int, ...]:
    """Return the lengths of the features that are lists, 0 for numbers; () if all are numbers."""
    metadata = fields.field(FEATURES).metadata if FEATURES in fields.names else None
    return tuple(json.loads((metadata or {}).get(WIDTHS, "[]")))


def is_feature(column: str) -> bool:
    """Tell whether a column in transit is the vector of features, or a feature that is a text."""
    return column == FEATURES or column.startswith(TEXT_FEATURE)


def text_fields(*, has_pair: bool, named: Iterable[str] = ()) -> pa.Schema:
    """Return what sources of texts yield: valid UTF-8, null if `error` is set; twice for pairs.

    Args:
        named: Columns that a prompt names, beside the text.
    """
    names = (TEXT, *([TEXT_PAIR] if has_pair else []), *(TEXT_OF + name for name in named))
    return pa.schema([pa.field(name, pa.large_string()) for name in names])


def source_schema(pass_through: Sequence[pa.Field], fields: pa.Schema) -> pa.Schema:
    """Rows as the source yields them; `fields` are the columns that hold the input."""
    return pa.schema(
        [
            pa.field(ROW_ID, pa.string(), nullable=False),
            pa.field(URI, pa.string(), nullable=False),
            *pass_through,
            *fields,
            *_FAILURE_FIELDS,
        ]
    )


INPUT_HASH_FIELD = pa.field(INPUT_HASH, pa.binary(16))


def prediction_schema(
    pass_through: Sequence[pa.Field], task_fields: Sequence[pa.Field], *, has_hashes: bool = False
) -> pa.Schema:
    """Rows as they are published: ids, pass-through columns, the columns of the task, the hash."""
    return pa.schema(
        [
            pa.field(ROW_ID, pa.string(), nullable=False),
            pa.field(URI, pa.string(), nullable=False),
            *pass_through,
            *task_fields,
            *([INPUT_HASH_FIELD] if has_hashes else []),
        ]
    )


def staged_schema(pass_through: Sequence[pa.Field], task_fields: Sequence[pa.Field]) -> pa.Schema:
    """Rows of a staged part: predictions and failures together, in input order."""
    return pa.schema([*prediction_schema(pass_through, task_fields), *_FAILURE_FIELDS])


QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field(ROW_ID, pa.string(), nullable=False),
        pa.field(URI, pa.string(), nullable=False),
        pa.field("stage", pa.string()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field(MESSAGE, pa.string()),
        pa.field(SHA256, pa.string()),
        pa.field(NUM_BYTES, pa.int64()),
        pa.field(SHARD, pa.string()),
        pa.field(ROW, pa.int64()),
        pa.field("run_id", pa.string()),
    ]
)
