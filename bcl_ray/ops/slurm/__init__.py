"""What Slurm starts on every node of an allocation: Ray, and the driver on the first node.

    srun ... python -m bcl_ray.ops.slurm FOLDER [OPTION]... -- COMMAND...

The first node starts Ray's head, waits until all nodes have joined, and runs COMMAND. The batch
script runs on the first node too. Script and nodes exchange messages through files in FOLDER,
which every node must mount:

    head    address of Ray's head
    joined  exists once Ray runs on all nodes
    stop    why the driver should stop: `end`, or `requeue` (to continue later)
    failed  what failed on one of the nodes
    result  the job's exit status, or `requeue`; absent if a node or its Ray was lost

(`ray symmetric-run` does not fit: it gives the driver no address, exits with 0 if Ray does not
start, and ends with `ray stop`, which ends the Ray of all jobs of the user on the node.)
"""
