"""Columns of shards: Arrow types, paths inside structs, inputs of rows, pass-through columns."""
