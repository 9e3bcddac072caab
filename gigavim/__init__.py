"""Gigapixel images as one long sequence of patches through a Vision Mamba encoder."""

from __future__ import annotations

__version__ = "0.1.0"
