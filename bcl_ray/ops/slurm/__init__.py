"""What Slurm starts on every node of an allocation: Ray, and on the first node the driver.

    srun ... python -m bcl_ray.ops.slurm FOLDER [OPTION]... -- COMMAND...

The first node starts Ray's head, waits until all nodes have joined, and runs COMMAND there. Nodes,
and the batch script, which lives on the first of them, tell each other by files in FOLDER, which
all of them mount:

    head    address of Ray's head
    joined  is there once Ray has started on all nodes
    stop    why the driver is asked to stop: `end`, or `requeue` (to go on later)
    failed  what failed on one of the nodes
    result  the job's exit status, or `requeue`; none: a node or its Ray was lost

(`ray symmetric-run` gives the driver no address, exits with 0 where Ray does not start, and ends
with `ray stop`, which ends the Ray of every job of the user on the node.)
"""
