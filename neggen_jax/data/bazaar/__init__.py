"""A synthetic catalogue whose causes are known; `make.py` makes it."""
