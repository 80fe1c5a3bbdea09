"""The output: its layout, lease, staging, compaction, manifest, publication, verification."""
