"""From images to views: sources, shards, the plan of an epoch, batches and augmentation."""
