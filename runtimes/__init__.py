"""Where a package runs: targets, and the Python runtime."""
