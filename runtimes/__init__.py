"""Where a package runs: targets, and the Python runtime."""

import os

# From 1.29 on ONNX Runtime reports its use to its maker unless it is told not to before it is
# imported: it would open a database in the user's cache and upload from there.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
