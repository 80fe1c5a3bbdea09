"""Directories of image models: transformers' and timm's, their transforms and detectors.

Facts are read from JSON files without torch (`image_facts.py`); `image_modules.py` builds the
module.
"""
