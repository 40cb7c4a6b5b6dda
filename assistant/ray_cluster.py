"""What a Ray cluster has for replicas of a package."""

from __future__ import annotations

import ray


def threads_each(replicas: int) -> int:
    """Cores for each of `replicas`, shared out evenly over the machines of the cluster."""
    cores = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return max(1, min(sum(cores) // replicas, max(cores, default=1)))
