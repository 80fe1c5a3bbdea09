"""Directories of text models: encoders, sentence-transformers, zero-shot by prompts.

Their own library is asked (`text_facts.py`, `sentence_transformers.py`) and its tokens are compared
with ours; `text_modules.py` builds the module, `text_oracle.py` predicts as the library does.
"""
