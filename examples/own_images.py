"""Your own images: a folder per class, from files to labels, in one script.

    python examples/own_images.py

Made-up pictures stand for yours. A run of a minute on two cores; needs bcl-ray[train].
"""

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import bcl_ray

COLOURS = {"red": (200, 40, 40), "green": (40, 160, 60), "blue": (50, 80, 200)}
SIZES = {"red": 60, "green": 20, "blue": 6}  # training images


def paint(folder: Path) -> None:
    """PATH/train/<class>/*.png and PATH/test/<class>/*.png, which is what `folder` reads."""
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for name, colour in COLOURS.items():
            target = folder / split / name
            target.mkdir(parents=True)
            for number in range(SIZES[name] if split == "train" else 8):
                pixels = np.clip(random.normal(colour, 45, (16, 16, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(target / f"{number}.png")


def main() -> None:
    """Shard, train, label."""
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        paint(work / "photos")
        bcl_ray.shard("folder", f"{work}/shards", path=f"{work}/photos")
        trained = bcl_ray.train(
            bcl_ray.recipe(
                "digits_lt",
                f"data.path={work}/shards",
                f"tracking.runs={work}/runs",
                "tracking.run=first",
                "tracking.report=false",
                "views.image_size=16",
                "views.eval_resize=16",
                "train.epochs=3",
                "scale.workers=1",
                "optim.global_batch_size=16",
            )
        )
        print(f"accuracy {trained.metrics['accuracy/all']:.0f} %")
        model = bcl_ray.load_model("first", runs=f"{work}/runs")
        for (name, probability), *_ in model.label([Image.open(work / "photos/test/blue/0.png")]):
            print(f"the first blue picture: {name}, {probability:.2f}")


if __name__ == "__main__":
    main()
