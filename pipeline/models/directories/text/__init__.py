"""Directories of text models: encoders, sentence-transformers, zero-shot by prompts.

Facts are read from JSON files without torch (`text_facts.py`); `text_modules.py` builds the
module.
"""
