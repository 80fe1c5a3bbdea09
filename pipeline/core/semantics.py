"""Semantics versions: one hand-kept number per area of code that decides a prediction.

Raise an area's number when the same input gives another output there, also where a default of its
settings changes: fingerprints hold only what differs from defaults. Fingerprints and the node
cache hold the numbers instead of the source text, so that a comment or a moved file makes nothing
stale. tests/integration/test_semantics.py holds digests of the outputs over a fixed corpus and
fails if they change while the number stays.
"""

from __future__ import annotations

from collections.abc import Mapping

SEMANTICS: Mapping[str, int] = {
    "images": 2,
    "audio": 2,
    "parquet": 4,
    "jsonl": 5,
    "csv": 4,
    "webdataset": 3,
    "fetch": 1,
    "decode": 2,
    "transform": 2,
    "waveform": 3,
    "features": 1,
    "tokenize": 1,
    "predict": 5,
}
"""Area -> version. `images`, `audio`, `parquet`, `jsonl`, `csv`, `webdataset`: rows, ids and values
that a source yields; `fetch`: what a URI column may name; `waveform`: what a clip of sound becomes;
`predict`: normalisation, export, weights, tasks."""


def semantics_of(input_areas: Mapping[str, int], *, has_uris: bool) -> dict[str, int]:
    """Return the numbers of the areas that a job goes through.

    Args:
        input_areas: Areas and numbers of the source format and of the input, which installed
            packages may bring.
        has_uris: Images are fetched from the URIs of a column.
    """
    areas = ["predict", *(["fetch"] if has_uris else [])]
    versions = {**input_areas, **{area: SEMANTICS[area] for area in areas}}
    return {area: versions[area] for area in sorted(versions)}
