"""Where QuPath looks for things on a slide."""

from __future__ import annotations

from gigavim.sources.source import Source


def qupath_origin(source: Source) -> tuple[float, float]:
    """Return x and y of the level-0 pixel from which QuPath counts; all our GeoJSON does too.

    Unless told otherwise, QuPath shows a slide cropped to the bounds that OpenSlide knows of it
    (MIRAX, Leica, Ventana; ``OpenslideImageServer``, github.com/qupath/qupath). 0 where it crops
    nothing, and on scenes.
    """
    import openslide

    if source.kind != "slide" or openslide.OpenSlide.detect_format(source.path) is None:
        return 0.0, 0.0
    with openslide.OpenSlide(source.path) as slide:
        x, y = (
            float(slide.properties.get(name, 0))
            for name in (openslide.PROPERTY_NAME_BOUNDS_X, openslide.PROPERTY_NAME_BOUNDS_Y)
        )
    return x, y
