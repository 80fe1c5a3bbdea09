"""Turn rows into model input: decoded images and clips of sound, features, tokens.

Begin with the protocol in `model_input.py`: `REGISTRY` names its classes. To add one, write a file
and a line here, or declare an entry point of the group `pipeline.preprocessing` in a distribution
that is installed on every node; `source.input` names it.
"""

REGISTRY = {
    "image": "pipeline.preprocessing.images.image_input:ImageInput",
    "features": "pipeline.preprocessing.table_input:FeatureInput",
    "text": "pipeline.preprocessing.texts.text_input:TextInput",
    "audio": "pipeline.preprocessing.audio.audio_input:AudioInput",
    "several": "pipeline.preprocessing.composite_input:CompositeInput",
}
"""`source.input` -> its class, imported when a job uses it."""
