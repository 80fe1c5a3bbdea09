"""The Delta table of the predictions beside the Parquet files."""
