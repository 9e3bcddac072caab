"""What a run leaves behind: one Zarr v3 group per image, readable with nothing but ``zarr``.

::

    attrs            gigavim: version, command, configuration, model, source, spacing, status,
                     times, contents: what each array should be, to find one that is damaged
    tokens/          in the order of the sequence, whose name is the attribute ``order``
                     coords (N, 2) x, y in level-0 pixels · grid_index (N, 2) row, column
                     features (N, D) · valid (N,) · probs (N, K) where a head gives them
    tiles/           coords (T, 2) · vectors (T, D) · probs (T, K)
    image/           vector (D,) · scores (K,)
    maps/<head>/     OME-Zarr image;  labels/<head>/ OME-Zarr label pyramid
    errors/          x, y, w, h, level, message: what could not be read
    state/           what a resume needs; gone when the run is complete
"""

from gigavim.store.identity import fingerprint, last_changes
from gigavim.store.result import ResultStore
from gigavim.store.running import RunProgress

__all__ = ["ResultStore", "RunProgress", "fingerprint", "last_changes"]
