"""What can go wrong with files, devices and stores, in one tree.

::

    GigavimError
    ├── SourceError          the image cannot be opened or read
    │   ├── NoSpacingError   it does not say how large a pixel is
    │   └── BandError        it has no such band
    ├── ModelError           weights or their configuration do not fit
    ├── KernelError          the asked-for kernel cannot run here
    └── StoreError           the result cannot be written, is in use, or is not ours
        └── StoreBusyError   another run is writing it

Each message is one line: the file, the fault with its values, the remedy. A caller's mistake in
Python is a plain ``ValueError`` or ``TypeError``.
"""

from __future__ import annotations


class GigavimError(Exception):
    """Anything that a user can mend without reading our code."""


class SourceError(GigavimError):
    """The image cannot be opened or read."""


class NoSpacingError(SourceError):
    """The image does not say how large a pixel is."""


class BandError(SourceError):
    """The image has no band of that name, index or wavelength."""


class ModelError(GigavimError):
    """Weights or their configuration do not fit."""


class KernelError(GigavimError):
    """The asked-for kernel cannot run on this machine."""


class StoreError(GigavimError):
    """The result cannot be written, or the folder holds something else."""


class StoreBusyError(StoreError):
    """Another run is writing this store."""
