"""Following a job's log over connections that break, against a small server that breaks them."""

import asyncio
import itertools
import json
import socket
import ssl
import threading
import time

import certifi
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from bcl_ray.ops.jobs import client, follow
from bcl_ray.ops.jobs.client import JobClient, dashboard_address, find_token
from bcl_ray.ops.jobs.follow import Lines

pytestmark = pytest.mark.ray  # Ray's client is used, though no Ray is started

JOB = "long-1124-120000"
LOG = "first\nsecond\n\nfourth is ünicode\nlast has no end"
TEXTS = st.text(st.sampled_from("ab\nü"), max_size=60)


@given(text=TEXTS, data=st.data())
def test_each_line_comes_once_however_often_the_connection_breaks(text, data):
    lines, complete = Lines(), []
    for _ in range(data.draw(st.integers(0, 5))):
        sent = text[: data.draw(st.integers(0, len(text)))]
        lines.reconnected()
        for chunk in pieces(sent, data):
            complete += lines.feed(chunk)
    lines.reconnected()
    for chunk in pieces(text, data):
        complete += lines.feed(chunk)
    complete += lines.end()
    assert complete == text.split("\n")[: None if text.rpartition("\n")[2] else -1]


def pieces(text: str, data) -> list[str]:
    marks = [0, *sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4))), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(marks)]


class Dashboard:
    """As much of a dashboard as following needs; each connection to the log does as `plan` says.

    A plan is a list of (characters to send, how to end): `abort`, `close`, `leave`, or a status
    to answer instead; the last one holds for all connections that come later.
    """

    def __init__(self):
        self.plan, self.status, self.connections = [(len(LOG), "close")], "RUNNING", 0
        self.answer = None  # a status with which everything is answered
        self.authorizations = set()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.start()

    def call(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def start(self):
        self.call(self._start())

    def stop(self):
        self.call(self._stop())

    async def _stop(self):
        await self.runner.cleanup()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _start(self):
        app = web.Application()
        app.add_routes(
            [
                web.get("/api/version", self.version),
                web.get("/api/jobs/", self.jobs),
                web.get("/api/jobs/{name}", self.job),
                web.get("/api/jobs/{name}/logs/tail", self.tail),
            ]
        )
        self.runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", self.port, reuse_address=True).start()

    def details(self):
        return {
            "type": "SUBMISSION",
            "submission_id": JOB,
            "entrypoint": "true",
            "status": self.status,
            "message": "no node has 8 GPUs",
        }

    def reply(self, request, content, status=200):
        self.authorizations.add(request.headers.get("Authorization"))
        return web.Response(text=content, status=self.answer or status)

    async def version(self, request):
        answer = {"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""}
        return self.reply(request, json.dumps(answer))

    async def jobs(self, request):
        return self.reply(request, json.dumps([self.details()]))

    async def job(self, request):
        if request.match_info["name"] != JOB:
            return self.reply(request, "no such job", 404)
        return self.reply(request, json.dumps(self.details()))

    async def tail(self, request):
        self.connections += 1
        last = len(self.plan) == 1
        characters, end = self.plan.pop(0) if len(self.plan) > 1 else self.plan[0]
        if isinstance(end, int):
            return web.Response(status=end)
        stream = web.WebSocketResponse()
        await stream.prepare(request)
        for begin in range(0, characters, 7):
            await stream.send_str(LOG[begin : min(begin + 7, characters)])
        if end == "leave":
            await asyncio.sleep(20)
        if end == "abort":
            await asyncio.sleep(0.05)
            request.transport.abort()
        elif last:
            self.status = "SUCCEEDED"
        return stream


@pytest.fixture
def dashboard(monkeypatch):
    for name in (*client.ADDRESSES, *client.CA_FILES, "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # so that what the client sets is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "sesame")
    monkeypatch.setattr(follow, "PAUSES", (0.05, 0.1))
    server = Dashboard()
    yield server
    server.stop()
    server.loop.call_soon_threadsafe(server.loop.stop)


def follow_job(dashboard):
    lines, messages = [], []
    job = follow.follow(JobClient(dashboard.address), JOB, lines.append, messages.append)
    return lines, messages, job


def test_a_log_is_shown_whole_and_the_token_is_sent(dashboard):
    lines, messages, job = follow_job(dashboard)
    assert lines == LOG.split("\n")
    assert (messages, job.status) == ([], "SUCCEEDED")
    assert dashboard.authorizations == {"Bearer sesame"}
    assert dashboard.connections == 1


@pytest.mark.parametrize("end", ["abort", "close", 502])
def test_a_connection_that_breaks_is_made_again_and_nothing_is_shown_twice(dashboard, end):
    """After no, some and all characters, in the middle of a line and at its end."""
    cuts = (0, 3, 6, 6, 14, 30, len(LOG))
    dashboard.plan = [*((cut, end) for cut in cuts), (len(LOG), "close")]
    lines, messages, job = follow_job(dashboard)
    assert lines == LOG.split("\n")
    assert job.status == "SUCCEEDED"
    assert dashboard.connections == 8
    assert set(messages) <= {
        f"connection to {dashboard.address} lost, trying again; the job goes on"
    }


def test_an_outage_of_the_dashboard_is_waited_for(dashboard):
    dashboard.plan = [(10, "leave"), (len(LOG), "close")]

    def outage():
        time.sleep(0.5)
        dashboard.stop()
        time.sleep(1)
        dashboard.start()

    thread = threading.Thread(target=outage)
    thread.start()
    lines, messages, _ = follow_job(dashboard)
    thread.join()
    assert lines == LOG.split("\n")
    assert messages == [f"connection to {dashboard.address} lost, trying again; the job goes on"]


def test_a_long_outage_of_the_dashboard_ends_the_following(dashboard, monkeypatch):
    monkeypatch.setattr(follow, "PATIENCE", 0.5)
    cluster = JobClient(dashboard.address)
    dashboard.stop()
    with pytest.raises(OSError, match="Connect call failed"):
        follow.follow(cluster, JOB, print, print)
    dashboard.start()


def test_a_job_whose_log_is_gone_with_its_node_ends(dashboard):
    dashboard.plan, dashboard.status = [(0, 500)], "FAILED"
    lines, messages, job = follow_job(dashboard)
    assert (lines, job.status) == ([], "FAILED")
    assert messages == ["the end of its log cannot be read: its node is gone"]


def test_the_reason_why_a_job_waits_is_shown(dashboard, monkeypatch):
    monkeypatch.setattr(follow, "QUIET", 0.2)
    dashboard.plan, dashboard.status = [(0, "leave"), (len(LOG), "close")], "PENDING"
    cluster, messages = JobClient(dashboard.address), []

    def stop_waiting(text):
        messages.append(text)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        follow.follow(cluster, JOB, print, stop_waiting)
    assert messages == ["the job is waiting: no node has 8 GPUs"]


def test_a_token_that_is_refused_in_the_middle_ends_the_following(dashboard):
    dashboard.plan = [(10, "abort"), (0, 401)]
    cluster = JobClient(dashboard.address)
    dashboard.answer = 401
    with pytest.raises(PermissionError, match=r"requires a token \(401\)"):
        follow.follow(cluster, JOB, print, print)


def test_following_ends_when_the_output_is_closed(dashboard):
    def closed(line):
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        follow.follow(JobClient(dashboard.address), JOB, closed, print)
    assert dashboard.connections == 1


def test_the_error_for_an_unknown_job_suggests_the_nearest(dashboard):
    with pytest.raises(ValueError, match=f"knows no job 'long-1224': did you mean {JOB}"):
        JobClient(dashboard.address).job("long-1224")


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (404, ValueError, "answers, but is no Ray dashboard"),
        (401, PermissionError, "requires a token (401); token on this machine: RAY_AUTH_TOKEN"),
        (403, PermissionError, "does not accept the token of RAY_AUTH_TOKEN (403)"),
        (500, OSError, "answered 500 to /api/version"),
    ],
)
def test_errors_of_a_dashboard_are_explained(dashboard, answer, kind, message):
    dashboard.answer = answer
    with pytest.raises(kind) as error:
        JobClient(dashboard.address)
    assert message in str(error.value)
    assert dashboard.address in str(error.value)
    assert "sesame" not in str(error.value)


def test_an_address_without_a_dashboard_is_explained(dashboard, monkeypatch):
    monkeypatch.setattr(client, "TIMEOUT", (0.3, 0.3))
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        with pytest.raises(OSError, match="refuses connections: is the cluster up, and is it"):
            JobClient(f"http://127.0.0.1:{port}")
        silent.listen()
        with pytest.raises(OSError, match="does not answer in time: is it the right host"):
            JobClient(f"http://127.0.0.1:{port}")
    with pytest.raises(OSError, match="is not trusted, or speaks no TLS: name the authority's"):
        JobClient(dashboard.address.replace("http", "https"))
    with pytest.raises(OSError, match="is a name that cannot be resolved"):
        JobClient("http://nowhere.invalid:8265")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_certificates_to_trust_may_be_a_file_or_a_folder(dashboard, monkeypatch, tmp_path, kind):
    trusted = certifi.where() if kind == "file" else str(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", trusted)
    assert isinstance(JobClient(dashboard.address).tls(), ssl.SSLContext)


def test_an_address_comes_from_the_option_or_the_environment(monkeypatch):
    for name in client.ADDRESSES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="which cluster"):
        dashboard_address(None)
    monkeypatch.setenv("RAY_ADDRESS", "https://ray:443/")
    assert dashboard_address(None) == "https://ray:443"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://api:8265")
    assert dashboard_address(None) == "http://api:8265"
    assert dashboard_address("http://other:8265") == "http://other:8265"


@pytest.mark.parametrize("address", ["auto", "10.0.0.1:6379", "ray://head:10001", "http://"])
def test_an_address_that_is_no_dashboards_is_refused(address):
    with pytest.raises(ValueError, match="jobs go to the dashboard: --address http://HOST:8265"):
        dashboard_address(address)


def test_a_password_in_an_address_is_refused_and_not_shown():
    with pytest.raises(ValueError, match="--address holds a user name or a password") as error:
        dashboard_address("http://me:sesame@head:8265")
    assert "sesame" not in str(error.value)


def test_a_token_is_found_where_ray_finds_it(tmp_path, monkeypatch):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    home, other = tmp_path / ".ray" / "auth_token", tmp_path / "other"
    missing = f"none in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or {home}"
    assert find_token() == (None, missing)
    home.parent.mkdir()
    home.write_text("of-home\n")
    assert find_token() == ("of-home", str(home))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(other))
    with pytest.raises(FileNotFoundError, match=r"RAY_AUTH_TOKEN_PATH names .*other, which does"):
        find_token()
    other.write_text("of-path")
    assert find_token() == ("of-path", str(other))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of-environment")
    assert find_token() == ("of-environment", "RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert find_token() == (None, "none, as RAY_AUTH_MODE is disabled")
