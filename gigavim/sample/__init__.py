"""Images to try things on: a slide and a scene made offline, or a real slide fetched."""

from gigavim.sample.full_scene import make_full_scene
from gigavim.sample.real import fetch_slide
from gigavim.sample.scene import make_scene
from gigavim.sample.slide import make_slide

__all__ = ["fetch_slide", "make_full_scene", "make_scene", "make_slide"]
