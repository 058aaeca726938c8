"""A set of counterfactuals in its directory: written, merged, and encoded.

generate.py  the way from a dataset to a complete set
pipeline.py  many tasks at a time, and how to stop; progress.py says how
             far it is
ledger.py    records on disk: resumable, sharded
carrying.py  records of a dataset that was extended
merging.py   shards in one file, counted, and the manifest
encode.py    texts -> vectors, with texts.py, which reads them when wanted
files.py     written whole or not at all
"""
