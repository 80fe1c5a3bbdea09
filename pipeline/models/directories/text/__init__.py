"""Directories of text models: encoders, sentence-transformers, answers, zero-shot by prompts.

Begin with `text_facts.py`. Their own library makes the tokens (`tokens.py`), the modules of
sentence-transformers and the frame of a chat, and each is compared with ours.
"""
