"""The columns of shards that hold the input of a row: images, their URIs, features, texts.

One file per kind, each behind the protocol in base.py; `columns_of` returns that of a job.
"""
