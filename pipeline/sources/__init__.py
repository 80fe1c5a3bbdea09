"""List shards and read their rows: image files, Parquet, WebDataset, columns of URIs."""
