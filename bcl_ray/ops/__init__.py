"""Machines: jobs, doctor, manifests, the local cluster, Slurm."""
