"""The few kernels that everything else stands on."""
