"""A training on a cluster: the stream of batches, workers, their driver."""
