"""One sequence of any length through the encoder, exactly, in bounded memory, resumable."""

from gigavim.streamed.cross import INNER_TABLES, mix_cross
from gigavim.streamed.mix import Mixed, mix, rows_like, rows_of, sweeps_of
from gigavim.streamed.scratch import DiskScratch, Mark, MemoryScratch, Place, Scratch

__all__ = [
    "INNER_TABLES",
    "DiskScratch",
    "Mark",
    "MemoryScratch",
    "Mixed",
    "Place",
    "Scratch",
    "mix",
    "mix_cross",
    "rows_like",
    "rows_of",
    "sweeps_of",
]
