"""The public Amazon reviews of 2014, 2018 and 2023, as they are downloaded.

`source.py` makes a catalogue of one category's files: of the reviews
(`reviews.py`), of what is known of the items (`metadata.py`) and of the image
features of 2014 (`images.py`). What the releases have in common and where they
differ is the table in `releases.py`; where the files are published, and what
has been counted in them, `public.py`. `fetch.py` brings them, and
`amazon_reviews.py` is a TFDS builder of the same.
"""
