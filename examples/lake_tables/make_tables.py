"""Write the passages of the demo as a Delta and an Iceberg table, and delete every tenth row."""

from pathlib import Path

import deltalake
import pyarrow.dataset as ds
from pyiceberg.catalog.sql import SqlCatalog

LAKE = Path("demo-output/lake").resolve()

if __name__ == "__main__":
    LAKE.mkdir(parents=True)
    passages = ds.dataset("demo-output/input/texts").to_table(columns=["id", "text"])
    tenth = ", ".join(map(repr, passages.column("id").to_pylist()[::10]))

    deltalake.write_deltalake(LAKE / "delta", passages)
    deltalake.DeltaTable(LAKE / "delta").delete(f"id in ({tenth})")

    catalog = SqlCatalog("default", uri=f"sqlite:///{LAKE}/catalog.db", warehouse=str(LAKE))
    catalog.create_namespace("demo")
    table = catalog.create_table("demo.passages", passages.schema)
    table.append(passages)
    table.delete(f"id in ({tenth})")
