"""Crashes, hangs and kills cost the rows that cause them: guarded readers, child processes."""
