"""Results as other programs read them: each format a function of a finished `Result`.

Nothing appears under a file's name before all of it is written. A format whose library is not
installed says which extra to install.
"""
