"""Images: encoded bytes become pixels of the model's size.

In: bytes of a row. Out: uint8 (H, W, C), or a failure with its reason. Begin with `image_input.py`
and `image_rows.py`; `transform.py` has the settings, and `geometry.py` their arithmetic.
"""
