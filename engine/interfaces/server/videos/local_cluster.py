"""A Ray cluster that nobody else can reach."""

import os

# Ray's own switch for machines on which it may not listen on the network. Its address of the node is then the loopback one,
# and all of its processes listen there alone; on Linux `ray.init(_node_ip_address="127.0.0.1")` does not achieve that.
_SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def keep_clusters_local() -> None:
    """Have clusters that this process starts listen on loopback alone, unless the user has set Ray's switch.

    Ray reads it when it is imported: call this before.
    """
    os.environ.setdefault(_SWITCH, "0")
