"""A real slide from the network."""

from __future__ import annotations

from pathlib import Path

from gigavim.errors import SourceError
from gigavim.sample.new_file import new_file

URL = "https://openslide.cs.cmu.edu/download/openslide-testdata/Aperio/CMU-1-Small-Region.svs"
"""OpenSlide's test data, CC0."""

SHA256 = "ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7"


def fetch_slide(path: Path) -> None:
    """Download a public slide of 2,220 x 2,967 pixels, and check that it is the one we know.

    Raises
    ------
    StoreError
        If the file is there already or cannot be written.
    SourceError
        If it cannot be downloaded, or is another file than it was.
    """
    import pooch

    with new_file(path) as unfinished:
        try:
            pooch.retrieve(URL, SHA256, unfinished.name, unfinished.parent)
        except (OSError, ValueError) as error:
            # What requests raises nests reasons; the innermost one is for people.
            fault = " ".join(str(getattr(error.args[0], "reason", error)).split())
            raise SourceError(
                f"{URL} cannot be fetched ({fault}); `gigavim sample slide` makes one offline"
            ) from error
