"""Forecast a run on machines that are not here, or the rest of a run from its own rates."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from bcl_ray.api.experiments import recipe
from bcl_ray.data.shards import MANIFEST, Manifest, read_manifest
from bcl_ray.experiment.metric_names import SPEED
from bcl_ray.experiment.open_options import resolved
from bcl_ray.experiment.options import Experiment
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import RECIPES
from bcl_ray.machine.errors import UserError
from bcl_ray.runs import run_folder
from bcl_ray.runs.budget import RESIDENT_SHARE, Budget, budget, check_store, resident_bytes
from bcl_ray.runs.forecast import Planned, forecast
from bcl_ray.runs.limits import Machines
from bcl_ray.runs.published import SIZES, expected_manifest
from bcl_ray.runs.rates import CPU, GPUS, RATES, Rate, recorded_rates
from bcl_ray.storage import files, paths

GPUS_PER_NODE = 8  # assumptions, for --gpus without a description
CPUS_PER_GPU = 12


def forecast_cluster(
    name: str,
    *overrides: str,
    cluster: Path | None = None,
    gpus: int | None = None,
    gpu: str | None = None,
    cpus: float | None = None,
    price: float | None = None,
    runs: str = "runs",
) -> Planned:
    """Forecast a run on a cluster that need not exist; starts nothing.

    Args:
        name: A recipe's name, a YAML file, or a run, the recorded speed of whose workers takes the
            place of the table's.
        overrides: Changes to the experiment. Without scale.workers, there are `gpus` workers, or as
            many as the description's job has if it is of this recipe.
        cluster: Description of the cluster, such as cluster/cluster.yaml; None with `gpus`.
        gpus: GPUs without a description, one for each worker.
        gpu: Kind of GPU, a key of `runs.rates.GPUS`; None for the description's.
        cpus: CPUs of all nodes, without a description; None for 12 beside each GPU.
        price: $ an hour and GPU, with its machine (on CPUs: and CPU); None for an assumption.
        runs: Folder or URI that holds runs.

    Raises:
        UserError: The run cannot work there; the message names what to change.
    """
    rates = dict(RATES)
    if is_run(name, runs):
        experiment, history, _ = _history(name, runs)
        # Its data CPUs and its object store were others; the speed of its workers stays.
        rates["training"] = recorded_rates(history, name)["training"]
    else:
        experiment = recipe(name)
    if cluster is not None and gpus is None and cpus is None:
        experiment, machines = _described(experiment, overrides, cluster, gpu, price)
    elif cluster is None and gpus is not None and gpu is not None:
        experiment = with_overrides(experiment, [f"scale.workers={gpus}", *overrides])
        machines = _gpus(gpu, experiment.scale.max_workers, cpus, price)
    else:
        raise UserError(
            "a forecast needs --cluster FILE, or --gpus N and --gpu KIND and perhaps --cpus N, "
            "such as --gpus 8 --gpu h100"
        )
    experiment = resolved(experiment)
    data = _data(experiment)
    experiment = _with_residency(experiment, data[0], machines)
    needs = budget(experiment, data[0], machines.cpus)
    if machines.store_bytes is not None:
        check_store(needs, machines.store_bytes)
    return _planned(experiment, needs, data, rates, machines=machines)


def is_run(name: str, runs: str = "runs") -> bool:
    """Whether a name is that of a run, and not of a recipe or a YAML file."""
    if name in RECIPES or name.endswith((".yaml", ".yml")):
        return False
    return run_folder.holds_run(paths.absolute(run_folder.run_uri(name, runs)))


def forecast_run(run: str, runs: str = "runs") -> Planned:
    """Forecast the rest of a run, on its own machines, from the rates that it has recorded.

    Raises:
        UserError: There is no such run, or it has not finished an epoch.
    """
    experiment, history, epochs_done = _history(run, runs)
    data = _data(experiment)
    needs = budget(experiment, data[0], None)
    rates = {**RATES, **recorded_rates(history, run)}
    return _planned(experiment, needs, data, rates, epochs_done=epochs_done)


def _planned(
    experiment: Experiment,
    needs: Budget,
    data: tuple[Manifest, str],
    rates: Mapping[str, Rate],
    *,
    machines: Machines | None = None,
    epochs_done: int = 0,
) -> Planned:
    from bcl_ray.method.cost import count_work

    manifest, data_source = data
    split = manifest.splits[experiment.data.train_split]
    work = count_work(experiment, len(manifest.class_names), needs.bytes_per_epoch / split.rows)
    found = forecast(experiment, needs, work, rates, machines, epochs_done=epochs_done)
    return Planned(experiment, needs, found, rates, machines, data_source)


def _described(
    experiment: Experiment,
    overrides: Sequence[str],
    cluster: Path,
    gpu: str | None,
    price: float | None,
) -> tuple[Experiment, Machines]:
    from bcl_ray.ops.manifests import read
    from bcl_ray.ops.manifests.capacity import machines_of

    description = read(cluster)
    of_job = [description.job.scale] if description.job.recipe == experiment.name else []
    experiment = with_overrides(experiment, [*of_job, *overrides])
    return experiment, machines_of(description, experiment, gpu, price)


def _gpus(gpu: str, workers: int, cpus: float | None, price: float | None) -> Machines:
    nodes = -(-workers // GPUS_PER_NODE)
    return Machines(gpu, workers, nodes, 0, cpus or CPUS_PER_GPU * workers, price=price)


def _data(experiment: Experiment) -> tuple[Manifest, str]:
    """The manifest of the shards, or the one that they would have; and how it is known."""
    if files.exists(files.join(experiment.data.path, MANIFEST)):
        return read_manifest(experiment.data.path), f"shards in {experiment.data.path}"
    manifest = expected_manifest(experiment)
    return manifest, f"no shards in {experiment.data.path}: {manifest.source}"


def _with_residency(experiment: Experiment, manifest: Manifest, machines: Machines) -> Experiment:
    """The experiment with data.residency as the run would resolve it on these machines."""
    if experiment.data.residency != "auto" or machines.device == CPU:
        return experiment
    memory = RESIDENT_SHARE * GPUS[machines.device].memory_gib * 2**30
    sizes = SIZES.get(experiment.name)
    fits = resident_bytes(experiment, manifest, machines.workers) <= memory
    kept = fits and sizes is not None and sizes.one_size
    return with_overrides(experiment, [f"data.residency={'device' if kept else 'stream'}"])


def _history(run: str, runs: str) -> tuple[Experiment, list[dict[str, float]], int]:
    """A run's experiment, its records of epochs with a speed, and the number of all its epochs.

    An epoch has no speed if only its evaluation was left when the run was resumed; earlier versions
    recorded a speed of 0.
    """
    from bcl_ray.tracking.tracker import journal_metrics
    from bcl_ray.use.models import last_state

    found, experiment = run_folder.open_run(paths.absolute(run_folder.run_uri(run, runs)))
    records = journal_metrics(run_folder.local_folder(found)) or last_state(found).history
    trained = [record for record in records if record.get(SPEED)]
    if not trained:
        raise UserError(f"run '{run}' has not finished an epoch yet: it has no rates to plan with")
    return experiment, trained, int(records[-1]["epoch"]) + 1
