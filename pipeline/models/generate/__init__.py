"""Tasks that write: settings, and the modules of task `generate`; `inference/generate/` runs them.

Begin with `spec.py` (settings and rules) and `decoding.py` (the base of the modules). `build.py`
chooses a module: `causal.py` continues a text, and rows enter and leave its batches; the others
answer an encoder, or continue a prompt with an image, by the library's `generate`. `task.py` makes
the columns, and `transcribe.py` those of models that give a token for each frame of a clip. Records
of a JSON schema: `schema.py` reads the schema into one canonical form, `grammar.py` says which
tokens may come next (extra `schema`), and `records.py` validates the text; a text that it rejects
is not a record, even if the grammar allowed it.

What a model directory says of writing is read by `directories/text/generation_config.py` and
`media_prompts.py`, which import this folder.
"""
