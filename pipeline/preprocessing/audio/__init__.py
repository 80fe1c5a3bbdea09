"""From encoded bytes to what a model hears: one channel at its rate, or features of that.

In: bytes of a row. Out: float32 of the clip's own length, or of the model's fixed shape, or a
failure with its reason. Begin with `audio_input.py`; `decode.py` reads WAV, FLAC, MP3 and Ogg,
`audio_settings.py` holds what a job or directory asks for.
"""
