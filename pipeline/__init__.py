"""Offline batch inference on Ray Data: shards in, predictions out as Parquet, exactly once."""
