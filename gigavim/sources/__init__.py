"""Slides and scenes, opened by content and read at any spacing."""
