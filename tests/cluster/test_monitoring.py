import json

import pytest
import yaml

from bcl_ray.experiment.metric_names import WORKER_RATES
from bcl_ray.ops.manifests import render
from tests.cluster.rendered import objects, ray_cluster

FILE = "base/monitoring.yaml"


@pytest.fixture
def monitored(description):
    settings = {"monitoring_namespace": "watchers", "monitoring_labels": {"release": "prometheus"}}
    kubernetes = description.kubernetes.model_copy(update=settings)
    return description.model_copy(update={"kubernetes": kubernetes})


def test_monitoring_is_rendered_only_if_the_description_names_its_namespace(description, monitored):
    assert FILE not in render("kuberay", description)
    files = render("kuberay", monitored)
    assert "monitoring.yaml" in yaml.safe_load(files["base/kustomization.yaml"])["resources"]


def test_the_pod_monitor_scrapes_every_ray_pod_at_the_port_that_kuberay_names(monitored):
    """The structure is monitoring.coreos.com/v1, of which there is no schema here."""
    monitor = objects(monitored, FILE)[0]
    assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", "PodMonitor")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["spec"].keys() == {"selector", "podMetricsEndpoints"}
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] == "metrics"
    (role,) = monitor["spec"]["selector"]["matchExpressions"]
    spec = ray_cluster(monitored)["spec"]
    templates = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    pods = {group["template"]["metadata"]["labels"][role["key"]] for group in templates}
    assert pods <= set(role["values"])


def test_the_dashboard_has_a_panel_of_each_rate_of_a_worker(monitored):
    stored = objects(monitored, FILE)[1]
    assert stored["metadata"]["labels"]["grafana_dashboard"] == "1"
    dashboard = json.loads(stored["data"]["bcl-ray.json"])
    panels = dashboard["panels"]
    expressions = " ".join(panel["targets"][0]["expr"] for panel in panels)
    assert all(f'ray_bcl_ray_{rate}{{run=~"$run"}}' in expressions for rate in WORKER_RATES)
    assert len({panel["id"] for panel in panels}) == len(panels) == len(WORKER_RATES) + 1
    positions = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(positions) == len(panels), "no panel lies on another"
    assert [variable["name"] for variable in dashboard["templating"]["list"]] == [
        "datasource",
        "run",
    ]
    assert panels[1]["targets"][0]["legendFormat"] == "{{run}} worker {{rank}}"
