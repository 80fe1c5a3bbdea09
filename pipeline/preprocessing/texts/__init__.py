"""From texts to token ids of each row's own length, by whole columns.

Begin with `text_input.py`; `tokenizer.py` is the only file that knows the tokenizers library.
"""
