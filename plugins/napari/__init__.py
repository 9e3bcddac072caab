"""Looks at gigapixel images and their results in napari, and asks them questions."""
