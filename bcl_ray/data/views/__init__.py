"""Views in two halves: 8-bit crops made by data tasks, and colour on the training step's device.

host        decode once, crop and flip once per view: uint8, numpy and OpenCV, never torch
device      jitter, grayscale, blur, policy, cutout, normalisation, for a whole batch: torch
operations  the operations on 8-bit images, batched, a family at a time: torch
coefficients  what they need for each image, made of its amounts: numpy
schedule    in which order the operations of a batch run, in few passes: numpy
policy      which operations an image gets, and how strongly: numpy
keyed       random numbers that depend on (seed, epoch, id, view) and on nothing else: numpy

Only the host half is re-exported, so that data tasks do not pay for importing torch.
"""

from bcl_ray.data.views.host import eval_views, train_views

__all__ = ["eval_views", "train_views"]
