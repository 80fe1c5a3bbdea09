"""Source formats: how shards of each are measured and their rows read, a file per format.

A file of a format's name holds its `FORMAT`; files whose names go on after it hold its parts.
"""
