"""What this process runs on: versions, the cluster and job, the limits of its container."""
