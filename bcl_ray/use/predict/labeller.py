"""A network that labels batches of views, in plain PyTorch.

Axes: N images of a batch, K classes, k of them named, E embedding width.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bcl_ray.data.views.device import normalized
from bcl_ray.data.views.transfer import Sender
from bcl_ray.machine.errors import UserError
from bcl_ray.method.precision import autocast
from bcl_ray.use.models import open_checkpoint

Columns = dict[str, NDArray[np.generic]]


class Labeller:
    """Loads a checkpoint where it is made, and labels what it is called with.

    Args:
        uri: folder of the checkpoint.
        sha256: of its file, so that all labellers have the same weights.
        top: k, classes that are named of each image, at most K.
        embeddings: whether to give them too.
        device: where to; None: the GPU that this process sees, else the CPU.

    Raises:
        ValueError: the checkpoint is another one by now.
    """

    def __init__(
        self,
        uri: str,
        sha256: str,
        *,
        top: int,
        embeddings: bool,
        device: torch.device | None = None,
    ) -> None:
        model = open_checkpoint(uri, uri)
        if model.sha256 != sha256:
            raise UserError(f"{uri} was replaced since this began: begin again in another folder")
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = model.network(self.device)
        self.views = model.experiment.views
        self.sender = Sender(self.device, self.views)
        self.precision = autocast(model.experiment.train.precision, self.device)
        self.temperature = model.temperature or 1.0
        self.top, self.embeddings = top, embeddings

    def __call__(self, batch: Columns) -> Columns:
        """Label a batch of views, uint8 (N, 1, H, W, 3).

        Args:
            batch: `views`, and `fault`, '' where there is a view; other columns are passed on.

        Returns:
            The batch without its views, with `classes` int64 (N, k), the likeliest first, and
            their `probabilities` float32 (N, k): softmax(logits / temperature); on request
            `embedding` float32 (N, E). All 0 where there is no view.
        """
        views, columns = batch["views"], {n: c for n, c in batch.items() if n != "views"}
        readable = torch.from_numpy(batch["fault"] == "")
        # The network takes one image at least: where none is readable, one that is not used.
        chosen = views[readable.numpy()] if readable.any() else views[:1]
        for name, found in self._label(chosen).items():
            whole = found.new_zeros(len(views), found.shape[1])
            columns[name] = whole.masked_scatter(readable[:, None], found).numpy()
        return columns

    @torch.no_grad()
    def _label(self, views: NDArray[np.generic]) -> dict[str, Tensor]:
        images = normalized(self.sender.arrays({"views": views})["views"], self.views)[0]
        with self.precision:
            embeddings = self.network.embed(images)
            logits = self.network.classifier(embeddings)
        probabilities = (logits.float() / self.temperature).softmax(dim=1)
        # Stable: of equal logits the first counts, as for evaluation's largest.
        classes = logits.float().sort(dim=1, descending=True, stable=True).indices[:, : self.top]
        found = {"classes": classes, "probabilities": probabilities.gather(1, classes)}
        if self.embeddings:
            found["embedding"] = embeddings.float()
        return {name: tensor.cpu() for name, tensor in found.items()}
