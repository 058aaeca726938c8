"""A set of counterfactuals: written, merged, and encoded."""
