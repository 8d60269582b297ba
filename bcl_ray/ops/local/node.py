"""`ray` for nodes that keep to this machine: `python -m bcl_ray.ops.local.node start …`.

Ray takes 127.0.0.1 for the machine's outer address, and then listens on every interface. With
RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 it does not, but it refuses a second node; this allows it.
"""

from ray.scripts.scripts import main

from bcl_ray.ray_runtime.internals import ray_constants, services

if __name__ == "__main__":
    services.resolve_ip_for_localhost = lambda host: host
    ray_constants.ENABLE_RAY_CLUSTER = True
    main()
