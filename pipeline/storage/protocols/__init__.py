"""The kinds of object stores, one file per provider; to add one, add a file and a row here."""

from __future__ import annotations

from pipeline.storage.protocols.azure import AZURE
from pipeline.storage.protocols.gcs import GCS
from pipeline.storage.protocols.hf import HF
from pipeline.storage.protocols.s3 import S3

OBJECT_PROTOCOLS = {
    **{"s3": S3, "gs": GCS, "az": AZURE, "abfs": AZURE, "abfss": AZURE},
    "hf": HF,
}
"""Protocol of a URI -> the functions and facts of its object store."""
