"""Reports of runs: what they found, told to people.

Stands last on the way of the data: nothing here is read back by anything.

write.py        one run, or two side by side, as a page and as Markdown
told.py         what a run left, read once; shop.py the items it ranked
single.py       the sections about one run
beside.py       the sections about two; examples.py users and their lists
metrics.py      tables of metrics; parts.py other parts of both
document.py     what sections are made of
as_html.py      the document as one HTML file; as_markdown.py as Markdown
figures.py      the plots of a run, as files in its workdir
comparison.py   many runs in one table
"""
