"""The Iceberg catalog that a job names, in `source.options` or `sink.table_options`."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from pipeline.job.section import MAPPING, TEXT, Section, by_form

_PASSWORD = re.compile(r"://[^/@]*:[^/@]*@")


class IcebergCatalog(Section):
    """A catalog that the job itself describes; it holds no secret."""

    type: Literal["sql", "rest", "glue", "hive"]
    """Type of the catalog, as pyiceberg names it."""
    name: str = "default"
    """Its name, under which a catalog of type `sql` keeps its tables."""
    uri: str | None = None
    """Its address, such as `sqlite:////data/catalog.db` or `https://catalog.example.com`."""
    warehouse: str | None = None
    """Its warehouse."""

    @field_validator("uri")
    @classmethod
    def _without_password(cls, uri: str | None) -> str | None:
        if uri is not None and _PASSWORD.search(uri):
            raise ValueError(
                "a password does not belong into a job file; name the catalog, and configure it by "
                "PYICEBERG_CATALOG__NAME__URI or in .pyiceberg.yaml"
            )
        return uri


CatalogEntry = Annotated[
    Annotated[str, TEXT] | Annotated[IcebergCatalog, MAPPING],
    by_form("a valid string or an object"),
]
"""The name of a catalog that pyiceberg is configured for, or a description of one."""

TableName = Annotated[str, Field(pattern=r"^[^.]+(\.[^.]+)+$")]
"""The namespace and the name of a table: `sales.reviews`."""
