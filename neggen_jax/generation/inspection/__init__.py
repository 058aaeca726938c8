"""A page to look at: what was written, and figures of it."""
