"""Language models that write: what their directory says of it, and rows that get a token each step.

Begin with `decoding.py`, the modules. In: token ids of prompts. Out: logits of the next token of
each row; `inference/engines/greedy.py` chooses tokens. `batch.py` holds the rows of a batch as
tensors, `growing_cache.py` their keys and values, `generation_config.py` reads the rules.
"""
