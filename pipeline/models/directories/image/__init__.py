"""Directories of image models of transformers and timm: facts, transforms, modules.

Begin with `image_facts.py`; `image_transform.py` holds our pixels to those of the library.
"""
