"""How people's files become a `Catalog`; `registry.py` lists the ways.

A source reads its files into a `Log` (`log.py`), of which `assemble.py` makes
a catalogue; `core.py` and `splits.py` do their part of that. Below them are
the readers of single formats: `lines.py`, `delimited.py`, `parquet.py`,
`matrices.py`, `pickles.py`. Nothing in a file is ever run.
"""
