"""Multi-modal recommenders trained on generated negatives."""

__version__ = "0.1.0"
