"""`ray` for nodes that listen on 127.0.0.1 alone: `python -m bcl_ray.ops.local.node start …`.

Ray replaces 127.0.0.1 by the machine's outer address, and then listens on every interface. With
RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 it keeps 127.0.0.1, but refuses a second node. This module
allows the second node.
"""

from ray.scripts.scripts import main

from bcl_ray.ray_runtime.internals import ray_constants, services

if __name__ == "__main__":
    services.resolve_ip_for_localhost = lambda host: host
    ray_constants.ENABLE_RAY_CLUSTER = True
    main()
