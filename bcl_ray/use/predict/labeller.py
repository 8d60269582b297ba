"""A network that labels batches of views, in plain PyTorch.

Axes: N images of a batch, K classes, k of them named, E embedding width.
"""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from bcl_ray.data.views.device import normalise
from bcl_ray.data.views.transfer import Sender
from bcl_ray.machine.errors import UserError
from bcl_ray.method.precision import set_up_precision
from bcl_ray.use.models import open_checkpoint
from bcl_ray.use.predict.tables import Columns


class Labeller:
    """Loads a checkpoint when it is created, and labels batches when it is called.

    Args:
        uri: Folder of the checkpoint.
        sha256: Hash of the checkpoint's file, so that all labellers have the same weights.
        top: k, the number of classes to name per image, at most K.
        embeddings: Whether to return embeddings.
        device: Device of the network; None: the GPU that this process sees, else the CPU.

    Raises:
        ValueError: The checkpoint was replaced by another one.
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
        self.precision = set_up_precision(model.experiment.train.precision, self.device)
        self.temperature = model.temperature or 1.0
        self.top, self.embeddings = top, embeddings

    def __call__(self, batch: Columns) -> Columns:
        """Label a batch of views.

        Args:
            batch: `views`, uint8 (N, 1, H, W, 3), and `error` (N,), "" for an image that has a
                view. Other columns are passed on.

        Returns:
            The batch without its views, with `classes` int64 (N, k), the most probable first, and
            their `probabilities` float32 (N, k): softmax(logits / temperature); on request
            `embedding` float32 (N, E). An image without a view has zeros.
        """
        views = batch["views"]
        columns = {name: column for name, column in batch.items() if name != "views"}
        readable = torch.from_numpy(batch["error"] == "")
        # The network needs at least one image; without a readable one, the result is not used.
        network_input = views[readable.numpy()] if readable.any() else views[:1]
        for name, values in self._label(network_input).items():
            column = values.new_zeros(len(views), values.shape[1])
            columns[name] = column.masked_scatter(readable[:, None], values).numpy()
        return columns

    @torch.no_grad()
    def _label(self, views: NDArray[Any]) -> dict[str, Tensor]:
        images = normalise(self.sender.send_arrays({"views": views})["views"], self.views)[0]
        with self.precision:
            embeddings = self.network.embed(images)
            logits = self.network.classifier(embeddings)
        probabilities = (logits.float() / self.temperature).softmax(dim=1)
        # A stable sort puts the first of equal logits first, like argmax in evaluation.
        classes = logits.float().sort(dim=1, descending=True, stable=True).indices[:, : self.top]
        columns = {"classes": classes, "probabilities": probabilities.gather(1, classes)}
        if self.embeddings:
            columns["embedding"] = embeddings.float()
        return {name: tensor.cpu() for name, tensor in columns.items()}
