"""A page to look at: what was written of some items, and figures of all.

inspect.py  what goes on the page
page.py     the page, as one HTML file
plots.py    its figures, drawn
summary.py  the figures' numbers, and how they are told
wording.py  which words differ, and where masks are
"""
