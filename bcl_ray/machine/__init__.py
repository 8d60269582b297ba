"""The machine and process: versions, cluster and job, limits of the container, messages."""
