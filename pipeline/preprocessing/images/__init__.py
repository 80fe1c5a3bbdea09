"""From encoded bytes to pixels of the model's size, on the CPU or by a GPU's own decoder.

In: bytes of a row. Out: uint8 (H, W, C), or a failure with its reason. Begin with
`image_input.py` and `images.py`; `transform.py` holds what a job or directory asks for,
`geometry.py` its arithmetic.
"""
