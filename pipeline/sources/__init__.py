"""List shards and read their rows: files, Parquet, JSON lines, CSV, WebDataset, URIs.

In: a job's section `source`. Out: shards with sizes and versions, then the rows of units, slice by
slice. Begin with `inputs.py`, which lists, and `reader.py`, which reads.

`REGISTRY` names the source formats, each a `SourceFormat` (source_format.py). To add one, write a
file and a line here, or declare an entry point of the group `pipeline.sources` in a distribution
that is installed on every node.
"""

REGISTRY = {
    "images": "pipeline.sources.image_files:FORMAT",
    "audio": "pipeline.sources.image_files:AUDIO",
    "parquet": "pipeline.sources.parquet.format:FORMAT",
    "jsonl": "pipeline.sources.jsonl.format:FORMAT",
    "csv": "pipeline.sources.csv.format:FORMAT",
    "webdataset": "pipeline.sources.webdataset.format:FORMAT",
}
"""`source.format` -> where its `SourceFormat` is; imported when a job names it."""
