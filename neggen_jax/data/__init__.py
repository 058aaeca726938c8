"""How a Catalog comes to be, and how batches leave it."""

import os

# TensorFlow only writes files and forms batches here, where it is imported at
# all; it need not say how fast it could compute.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
