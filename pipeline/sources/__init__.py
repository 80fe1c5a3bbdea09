"""List shards and read their rows: image files, Parquet, JSON lines, WebDataset, URIs.

`REGISTRY` names the source formats, each an object of the protocol in source_format.py. To add
one, write a file and a line here, or declare an entry point of the group `pipeline.sources` in a
distribution that is installed on every node.
"""

REGISTRY = {
    "images": "pipeline.sources.formats.images:FORMAT",
    "parquet": "pipeline.sources.formats.parquet:FORMAT",
    "jsonl": "pipeline.sources.formats.jsonl:FORMAT",
    "webdataset": "pipeline.sources.formats.webdataset:FORMAT",
}
"""`source.format` -> where its `SourceFormat` is; imported when a job names it."""
