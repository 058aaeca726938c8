"""How a Catalog comes to be, and how batches leave it."""
