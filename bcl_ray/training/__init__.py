"""The training of a model on a Ray cluster.

driver           runs a training from its first check to its report, with the help of
                 preparation, launch, monitor and outcome
worker           trains in a process of Ray Train: checkpoints, feed, evaluator and speed are its
                 parts
stream, tasks    batches of a feed through Ray Data, from the supplier of deliveries that
                 supplier_placement starts
residency, resident_images    batches of a feed from images on the worker's device
"""
