"""Sound: encoded bytes become samples at the model's rate, or features of them.

In: bytes of a row. Out: float32 of the clip's own length or of the model's fixed shape, or a
failure with its reason. Begin with `audio_input.py`; `decode_clip.py` reads WAV, FLAC, MP3 and Ogg,
and `audio_settings.py` has the settings of a job or a model directory.
"""
