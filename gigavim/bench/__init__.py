"""How fast GigaVim is on this machine: its scan, its encoder, and a whole run.

Each benchmark yields one row a measurement; `show` makes a table, a plot and JSON lines of them.
Figures of one machine mean little on another, so each compares what it measures with something that
runs beside it: contestants take turns, and the best round of each counts.
"""

from gigavim.bench.show import Plot, Row, show

__all__ = ["Plot", "Row", "show"]
