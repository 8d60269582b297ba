"""What only a GPU can tell: `make gpu`, in under nine minutes; `make gpu-smoke` tries it on a CPU.

It needs Linux, Python 3.11 or newer, torch, torchvision, numpy, pyarrow and OpenCV, and no
network. bcl_ray is taken from the checkout. What is missing of benchmarks/gpu/wheels.txt (and of
wheels-ray.txt, for the training through Ray Train) comes as wheels: `make gpu-wheels` downloads
them on another machine, for Python 3.12 on x86-64. WHEELS is their folder; they are installed into
one that is gone afterwards.

    make gpu WHEELS=gpu-wheels DATA=cifar OUT=results
    python -m benchmarks.gpu --wheels gpu-wheels --data cifar --out results    # the same

DATA is a folder of shards, as `bcl-ray shard` wrote them, or of train.parquet and test.parquet of
CIFAR-100 (its long tail of factor 100 is taken); without it images are synthetic, and accuracies
mean nothing. OUT gets report.json, table.txt and log.txt.

Each part runs in a process of its own, which is killed when its time is up: what it had found by
then is in the table, and the other parts still run.
"""
