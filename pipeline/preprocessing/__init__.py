"""From a row to what a model sees of it: decoded images, features.

`REGISTRY` names the inputs, each a class of the protocol in model_input.py. Another one is one more
file and line here, or an entry point of the group `pipeline.preprocessing` in any distribution that
is installed where the job runs, on every node; `source.input` names it.
"""

REGISTRY = {
    "image": "pipeline.preprocessing.image_input:ImageInput",
    "features": "pipeline.preprocessing.feature_input:FeatureInput",
}
"""`source.input` -> where its `Input` is; imported when a job uses it."""
