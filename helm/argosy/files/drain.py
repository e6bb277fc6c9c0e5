"""Moves what runs on this node of Ray elsewhere and waits until it is gone. A pod does so before it stops.

Ray Serve starts other replicas for those of a node that drains, and lets these finish their calls.

usage: python drain.py SECONDS PAUSE, the most that it may take, and a pause at the end for callers that learn late
"""

import sys
import time

import ray
from ray._raylet import GcsClient
from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION
from ray.util.state import list_actors

LOOK_SECONDS = 1.0
# Replicas, besides proxies and the controller, which stay until the node ends.
REPLICA = "ServeReplica:"


def drain(seconds: float) -> bool:
    """Returns whether all replicas of this node ended in time."""
    ray.init(address="auto", log_to_driver=False, logging_level="error")
    context = ray.get_runtime_context()
    node = context.get_node_id()
    deadline = time.time() + seconds
    accepted, reason = GcsClient(address=context.gcs_address).drain_node(
        node, DRAIN_NODE_REASON_PREEMPTION, "the pod stops", int(deadline * 1000)
    )
    if not accepted:
        sys.exit(f"Ray does not drain this node: {reason}")
    while time.time() < deadline:
        actors = list_actors(filters=[("node_id", "=", node), ("state", "=", "ALIVE")], limit=10_000)
        if not any(actor.class_name.startswith(REPLICA) for actor in actors):
            return True
        time.sleep(LOOK_SECONDS)
    return False


if __name__ == "__main__":
    in_time = drain(float(sys.argv[1]))
    time.sleep(float(sys.argv[2]))
    sys.exit(not in_time)
