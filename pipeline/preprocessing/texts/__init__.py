"""Texts: whole columns become token ids, each row with its own length.

Begin with `text_input.py`; only `tokenizer.py` knows the tokenizers library.
"""
