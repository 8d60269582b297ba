"""Views: `python -m benchmarks.views`, about a minute on one core.

The host half (decode, crop, flip) against the pipeline that it takes out of the data tasks: Pillow
decoding, then torchvision's Pillow transforms per view, with jitter, grayscale and RandAugment as
in the ImageNet recipe. The device half against the colour part of that pipeline. Goals: 5 times
the images/s/core, and no slower on a CPU. Beside them, what the choices rest on: decoders and
resizing filters, with the difference of their pixels from the conventional ones.

Pictures are synthetic, 500 x 375, with the 1/f spectrum of natural images; at quality 90 their
files have about the size of ImageNet's, 120 kB.
"""

import importlib.util
import io
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import io as torchvision_io
from torchvision import transforms

from bcl_ray.data.decode import Pixels, decode
from bcl_ray.data.views import host, train_views
from bcl_ray.data.views.crops import random_boxes
from bcl_ray.data.views.device import augment, draw_augmentations
from bcl_ray.experiment.options import ViewConfig, ViewsConfig
from benchmarks import alternate, print_table
from benchmarks.images import encoded, pictures

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
JITTER = (0.4, 0.4, 0.4, 0.1)
NUM_IMAGES, ROUNDS = 32, 3


def imagenet() -> ViewsConfig:
    classification = ViewConfig(crop="resized", policy="randaugment", jitter=(0.4, 0.4, 0.4, 0))
    contrastive = ViewConfig(
        crop="resized",
        policy="randaugment",
        jitter=JITTER,
        jitter_probability=0.8,
        grayscale=0.2,
    )
    return ViewsConfig(
        image_size=224,
        eval_resize=256,
        classification=classification,
        contrastive=contrastive,
        mean=MEAN,
        std=STD,
    )


def cifar() -> ViewsConfig:
    contrastive = ViewConfig(
        crop="resized", scale=(0.2, 1), jitter=JITTER, jitter_probability=0.8, grayscale=0.2
    )
    return ViewsConfig(
        image_size=32,
        eval_resize=32,
        classification=ViewConfig(crop="padded", policy="cifar10", cutout=16),
        contrastive=contrastive,
        mean=MEAN,
        std=STD,
    )


def pillow(image: bytes) -> Image.Image:
    return Image.open(io.BytesIO(image)).convert("RGB")


def colour(view: ViewConfig) -> list[Callable[[Any], Any]]:
    """Torchvision's Pillow transforms of one view after its crop and flip."""
    steps: list[Callable[[Any], Any]] = []
    if any(view.jitter):
        jitter = transforms.ColorJitter(*view.jitter)
        steps.append(transforms.RandomApply([jitter], p=view.jitter_probability))
    if view.grayscale:
        steps.append(transforms.RandomGrayscale(view.grayscale))
    if view.policy == "randaugment":
        steps.append(transforms.RandAugment(2, 10))
    if view.policy == "cifar10":
        steps.append(transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10))
    return [*steps, transforms.ToTensor(), transforms.Normalize(MEAN, STD)]


def conventional(config: ViewsConfig) -> list[Callable[[Any], Any]]:
    """The whole transform of each of the three views."""
    composed = []
    for view in (config.classification, config.contrastive, config.contrastive):
        size = config.image_size
        crop = (
            transforms.RandomResizedCrop(size, view.scale)
            if view.crop == "resized"
            else transforms.RandomCrop(size, padding=view.padding)
        )
        composed.append(
            transforms.Compose([crop, transforms.RandomHorizontalFlip(), *colour(view)])
        )
    return composed


def psnr(error: NDArray[Any]) -> float:
    return float(10 * np.log10(255**2 / max(np.square(error).mean(), 1e-9)))


def microseconds(function: Callable[[Any], object], items: Sequence[Any]) -> float:
    """Median over rounds of the mean time per item."""
    taken = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        for item in items:
            function(item)
        taken.append((time.perf_counter() - start) / len(items) * 1e6)
    return statistics.median(taken[1:])


def decoders(images: Sequence[bytes]) -> None:
    def opencv_half(image: bytes) -> Pixels:
        pixels: Pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_REDUCED_COLOR_2)
        return pixels

    def pillow_half(image: bytes) -> Pixels:
        opened = Image.open(io.BytesIO(image))
        opened.draft("RGB", (opened.width // 2, opened.height // 2))
        return np.asarray(opened)

    def torchvision(image: bytes) -> Pixels:
        data = torch.frombuffer(bytearray(image), dtype=torch.uint8)
        decoded = torchvision_io.decode_jpeg(data, mode=torchvision_io.ImageReadMode.RGB)
        pixels: Pixels = decoded.permute(1, 2, 0).numpy()
        return pixels

    candidates: dict[str, Callable[[bytes], Pixels]] = {
        "Pillow": lambda image: np.asarray(pillow(image)),
        "OpenCV (used)": decode,
        "torchvision.io": torchvision,
        "Pillow, half size": pillow_half,
        "OpenCV, half size": opencv_half,
    }
    if importlib.util.find_spec("simplejpeg"):
        simplejpeg = importlib.import_module("simplejpeg")
        candidates["simplejpeg"] = simplejpeg.decode_jpeg
        candidates["simplejpeg, fast"] = lambda image: simplejpeg.decode_jpeg(
            image, fastdct=True, fastupsample=True
        )
    rows = []
    for name, decoder in candidates.items():
        ours, reference = decoder(images[0]), np.asarray(pillow(images[0]))
        same = ours.shape == reference.shape
        difference = f"{np.abs(ours.astype(float) - reference).mean():.2f}" if same else "smaller"
        rows.append((name, f"{microseconds(decoder, images):.0f}", difference))
    print_table(
        "Decoding a JPEG of 500 x 375", ["decoder", "us", "mean difference from Pillow"], rows
    )


def filters(photos: Sequence[Pixels]) -> None:
    """Random crops resized to 224 x 224, against Pillow's antialiased bilinear filter."""
    config = ViewConfig(crop="resized")
    draws = np.random.default_rng(0).random((len(photos), 23))
    sides = np.array([pixels.shape[:2] for pixels in photos])
    boxes, crops = random_boxes(sides, 224, config, draws), []
    for pixels, box in zip(photos, boxes, strict=True):
        top, left, height, width = box
        crops.append(np.ascontiguousarray(pixels[top : top + height, left : left + width]))

    def conventional(crop: Pixels) -> Pixels:
        return np.asarray(Image.fromarray(crop).resize((224, 224), Image.Resampling.BILINEAR))

    candidates: dict[str, Callable[[Pixels], Pixels]] = {
        "Pillow, bilinear": conventional,
        "OpenCV, bilinear": lambda crop: cv2.resize(crop, (224, 224)),
        "OpenCV, area": lambda crop: cv2.resize(crop, (224, 224), interpolation=cv2.INTER_AREA),
        "OpenCV, supersampled (used)": lambda crop: host.resize(crop, 224, 224),
    }
    rows = []
    for name, resize in candidates.items():
        errors = np.stack([resize(crop).astype(float) - conventional(crop) for crop in crops])
        rows.append(
            (
                name,
                f"{microseconds(resize, crops):.0f}",
                f"{np.abs(errors).mean():.2f}",
                f"{psnr(errors):.1f}",
            )
        )
    print_table(
        "Resizing a random crop to 224 x 224",
        ["filter", "us", "mean difference of 255", "PSNR, dB"],
        rows,
    )


def halves(name: str, config: ViewsConfig, images: Sequence[bytes]) -> tuple[float, float]:
    """Print one row per part; return the ratios of the host half and of the device half."""
    ids, whole = np.arange(len(images)), conventional(config)
    views = torch.from_numpy(train_views(images, ids, config, num_contrastive=2, seed=0, epoch=0))
    kinds = (config.classification, config.contrastive, config.contrastive)
    colours = [transforms.Compose(colour(kind)) for kind in kinds]
    crops = [[Image.fromarray(view) for view in image] for image in views.numpy()]

    def per_image() -> list[torch.Tensor]:  # decodes once as well, as the authors' loader does
        return [view(pixels) for pixels in map(pillow, images) for view in whole]

    def per_image_colour() -> list[torch.Tensor]:
        return [view(crop) for image in crops for view, crop in zip(colours, image, strict=True)]

    def our_host() -> Pixels:
        return train_views(images, ids, config, num_contrastive=2, seed=0, epoch=0)

    def our_colour(cropped: torch.Tensor) -> torch.Tensor:
        drawn = draw_augmentations(ids, config, num_views=3, seed=0, epoch=0)
        arrays = {name: torch.from_numpy(array) for name, array in drawn.arrays.items()}
        return augment(cropped, drawn.passes, arrays, config)

    def our_device() -> torch.Tensor:
        return our_colour(views)

    def our_both() -> torch.Tensor:
        return our_colour(torch.from_numpy(our_host()))

    parts: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
        ("host half : whole pipeline", our_host, per_image),
        ("device half : its colour part", our_device, per_image_colour),
        ("both halves : whole pipeline", our_both, per_image),
    ]
    rows, ratios = [], []
    for part, ours, theirs in parts:
        our_time, their_time = alternate(ours, theirs, ROUNDS)
        ratios.append(their_time / our_time)
        rates = [f"{len(images) / seconds:.0f}" for seconds in (our_time, their_time)]
        rows.append((part, *rates, f"{ratios[-1]:.1f}"))
    print_table(f"{name}, images/s/core", ["here : there", "here", "there", "ratio"], rows)
    return ratios[0], ratios[1]


def main() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    torch.manual_seed(0)
    photos = list(pictures(NUM_IMAGES, 500, 375))
    files = [encoded(photo, "JPEG") for photo in photos]
    icons = [encoded(icon, "PNG") for icon in pictures(8 * NUM_IMAGES, 32, 32)]
    decoders(files)
    filters([np.asarray(photo) for photo in photos])
    for name, config, images in (
        ("32 x 32 PNG to three views of 32 x 32", cifar(), icons),
        ("500 x 375 JPEG to three views of 224 x 224", imagenet(), files),
    ):
        host_ratio, device_ratio = halves(name, config, images)
        print(
            f"ratio: host half {host_ratio:.1f} (goal 5), device half {device_ratio:.1f} (goal 1)"
        )


if __name__ == "__main__":
    main()
