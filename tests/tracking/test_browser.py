"""MLflow's pages in a real browser.

Screenshots go to the folder of BCL_RAY_SCREENSHOTS, or to that of the test.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import psutil
import pytest

from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.report.figures.comparison import Configuration, comparison
from bcl_ray.report.figures.style import png
from bcl_ray.tracking.connection import tracking_uri
from bcl_ray.tracking.journal import Subject
from bcl_ray.tracking.tracker import Tracker
from tests.tracked import PATIENCE, begin, experiment_in, start, tracker_of

pytestmark = pytest.mark.slow

SEARCH = "5" * 32
PATIENCE_MS = 120_000  # of a machine that has other work


def record(epoch, best):
    accuracy = best * (1 - 0.8**epoch)
    groups = {"all": accuracy, "many": accuracy + 9, "medium": accuracy + 2, "few": accuracy - 12}
    return {
        "loss/total": 4 * 0.8**epoch,
        **{f"accuracy/{group}": value for group, value in groups.items()},
        "calibration/ece": 5.0,
        "geometry/tail_tail_cosine": 0.5 * 0.8**epoch,
    }


def track(experiment, name, best, figure, parent=None):
    with tracker_of(begin(experiment, name), experiment) as tracker:
        start(tracker, experiment, parent)
        for epoch in range(20):
            tracker.metrics(record(epoch, best), epoch)
            tracker.metrics({"system/train-1/cpu_percent": 90 + epoch % 5}, epoch)
        tracker.artifact(figure, "figures")
        assert tracker.finish("FINISHED", PATIENCE), tracker.problem
    return tracker.run_id


@pytest.fixture(scope="module")
def tracked(tmp_path_factory, database):
    """Two runs, and a search of two trials; with figures."""
    root = tmp_path_factory.mktemp("seen") / "runs"
    root.mkdir()
    shutil.copy(database, root / "mlflow.db")
    experiment = experiment_in(root)
    curve = {epoch: record(epoch, 90)["accuracy/all"] for epoch in range(20)}
    figure = root / "comparison.png"
    figure.write_bytes(
        png(comparison([Configuration("bcl", {"all": [89.0], "few": [77.0]}, [curve])]))
    )
    ids = {name: track(experiment, name, best, figure) for name, best in (("a", 86), ("b", 90))}
    about = Subject(SEARCH, "a search", "bcl-ray", {"search.trials": "2"})
    with Tracker(about, tracking_uri(experiment), root / "search") as search:
        search.start()
        for number in (0, 1):
            trial = with_overrides(experiment, [f"loss.temperature=0.{number + 1}"])
            track(trial, f"trial-{number}", 88 + number, figure, SEARCH)
        assert search.finish("FINISHED", PATIENCE), search.problem
    return root, ids


@pytest.fixture(scope="module")
def address(tracked):
    """The address of `bcl-ray ui`, which Ctrl-C ends together with its processes."""
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-m", "bcl_ray", "ui", "--runs", str(tracked[0])]
    ui = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    try:
        line = ui.stdout.readline()
        found = re.fullmatch(r"MLflow: (http://127\.0\.0\.1:\d+)  \(Ctrl-C ends it\)\n", line)
        assert found, line + ui.stdout.read()
        yield found[1]
        started = psutil.Process(ui.pid).children(recursive=True)
        assert started
        ui.send_signal(signal.SIGINT)
        rest, _ = ui.communicate(timeout=PATIENCE)
        assert (ui.returncode, rest.strip()) == (0, "ended")
        assert [one for one in started if one.is_running() and one.status() != "zombie"] == []
    finally:
        ui.kill()


@pytest.fixture(scope="module")
def page(address, tmp_path_factory):
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if program is None:
        message = "NOT SEEN IN A BROWSER: apt-get install chromium"
        warnings.warn(message, stacklevel=1)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Root has no sandbox; the pages are ours.
        options = ["--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        browser = playwright.chromium.launch(executable_path=program, args=options)
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(PATIENCE_MS)
        # Nothing but the server is asked; MLflow's pages would ask for news.
        others = re.compile(rf"^(?!{re.escape(address)}|data:|blob:)")
        page.route(others, lambda route: route.abort())
        page.goto(address)
        page.get_by_text("Model training", exact=True).click()
        page.locator("[data-component-id='mlflow.assistant.chat_panel.close']").click()
        yield page
        browser.close()


@pytest.fixture
def show(page, tmp_path, request):
    """Save a screenshot of the page."""
    folder = Path(os.environ.get("BCL_RAY_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    yield lambda name: page.screenshot(path=folder / f"{name}.png")
    page.screenshot(path=folder / f"{request.node.name[:40]}-end.png")


def link(page, name):
    return page.get_by_role("link", name=name, exact=True).first


def test_the_experiment_lists_the_runs_and_a_search_has_its_trials_below_it(page, address, show):
    page.goto(f"{address}/#/experiments/1/runs")
    for name in ("a", "b", "a search"):
        link(page, name).wait_for()
    show("runs")
    for number in (0, 1):
        assert link(page, f"trial-{number}").count() == 0, "it is not a run among others"
    row = page.get_by_role("row").filter(has=link(page, "a search"))
    row.get_by_role("button").first.click()
    for number in (0, 1):
        link(page, f"trial-{number}").wait_for()
    show("search")


def test_a_run_shows_what_it_is_and_its_curves_and_figures(page, address, tracked, show):
    page.goto(f"{address}/#/experiments/1/runs/{tracked[1]['b']}")
    page.get_by_role("cell", name="epoch 20 of 40").wait_for()
    for text in ("digits/train (ffffffffffff)", "data.fingerprint", "Finished"):
        assert page.get_by_text(text).first.is_visible(), text
    show("run")

    page.get_by_role("tab", name="Model metrics").click()
    chart = page.locator(".js-plotly-plot").first
    chart.locator("path.point").nth(19).wait_for()
    places = "points => new Set(points.map(point => point.getAttribute('transform'))).size"
    assert chart.locator("path.point").evaluate_all(places) == 20, "a point for each epoch"
    for group in ("accuracy", "geometry", "loss"):
        page.get_by_text(group, exact=True).first.wait_for()
    show("curves")

    page.get_by_role("tab", name="System metrics").click()
    page.get_by_text("system/train-1", exact=True).first.wait_for()
    show("system")

    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("figures", exact=True).click()
    page.get_by_text("comparison.png").first.click()
    image = page.locator("img[src^='blob:'], img[src*='comparison.png']").first
    image.wait_for()
    assert image.evaluate("image => image.naturalWidth") > 1000
    show("figures")
