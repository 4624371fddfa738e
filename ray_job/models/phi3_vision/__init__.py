"""Phi-3-Vision: configuration, picture and prompt preparation, and the model itself.

Importing this package imports no torch; `image_processing`, `processor` and `configuration` need none either.
"""
