"""Views in two halves: uint8 crops by data tasks on CPUs, then colour on the training device.

host          decodes each image once, and crops and flips it per view: NumPy and OpenCV, no torch
crops         draws these crops and flips: NumPy
resident      the same crops, of decoded images that are kept on the device: torch
draws         draws which colour operations an image gets, and how strong: NumPy
coefficients  turns these strengths into the operations' coefficients: NumPy
schedule      orders the operations of a batch, so that they run in few passes: NumPy
operations    applies operations to batches of 8-bit images: torch
device        applies all of the above to a batch, and normalises it: torch
transfer      sends batches to the device: torch

Only the host half is re-exported, so that data tasks do not have to import torch.
"""

from bcl_ray.data.views.host import eval_views, train_views

__all__ = ["eval_views", "train_views"]
