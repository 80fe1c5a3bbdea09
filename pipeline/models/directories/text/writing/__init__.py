"""Models that write: what their directory says of it, and rows that get a token each step.

Begin with `decoding.py`: the base of the modules, and the one that answers to an encoder of texts,
clips or images, or continues a prompt with an image, by the library's `generate`; `causal.py`
continues a text, and rows enter and leave its batches; `opening.py` chooses one of them. In: rows
as the input makes them. Out: logits of the next token of each row;
`inference/writing/greedy.py` chooses tokens.
`generation_config.py` reads the rules, `features.py` what the models begin with that read no text.
"""
