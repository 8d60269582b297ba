"""Ceph's RADOS Gateway, with one monitor and one store behind it, as an ordinary user.

Creating an object only if it is absent is atomic. Ceph 16 takes no checksum trailers: its
environment tells clients to send none. The monitor and the store ask for no credentials, so
they listen on this machine alone.
"""

import json
import os
import subprocess
import uuid
from pathlib import Path
from string import Template

from bcl_ray.machine.errors import UserError
from bcl_ray.ops.local.ports import LOOPBACK
from bcl_ray.ops.local.processes import program
from bcl_ray.ops.local.secret import write_private
from bcl_ray.ops.local.store import S3Server

INSTALL = "apt-get install --no-install-recommends radosgw ceph-mon ceph-osd"
USER = "bcl-ray"
SETTINGS = """\
[global]
fsid = $fsid
mon host = [v2:$host:$mon_port/0]
public addr = $host
cluster addr = $host
ms bind port min = $osd_port
ms bind port max = $last_port
auth cluster required = none
auth service required = none
auth client required = none
run dir = $folder/run
log file = $folder/log/$$name.ceph.log
admin socket =
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd heartbeat grace = 300
mon allow pool size one = true
mon max pg per osd = 1000
paxos propose interval = 0.05
mon client hunt interval = 0.5
ms max backoff = 1
debug rocksdb = 0
debug bluefs = 0
debug bdev = 0
debug bluestore = 0
debug osd = 0
[mon]
mon data = $folder/mon
mon cluster log file = $folder/log/cluster.log
mon data avail crit = 1
mon data avail warn = 2
[osd]
osd data = $folder/osd
osd objectstore = bluestore
bluestore block size = 21474836480
osd memory target = 939524096
osd op num shards = 2
osd op num threads per shard = 2
[client]
keyring = /dev/null
ms mon client mode = crc
[client.rgw]
rgw frontends = beast tcp_nodelay=1 endpoint=$host:$port
rgw data = $folder/rgw
rgw thread pool size = 64
# With its cache on, a bucket made after a crash waits 29 s for the dead gateway.
rgw cache enabled = false
"""
# crc: a monitor without credentials cannot have the encrypted connection that is the default.
# tcp_nodelay: a small read takes 3 ms instead of 46.


class Ceph(S3Server):
    """Ceph on this machine."""

    access_key = "bcl-ray"
    num_ports = 10  # S3, the monitor's, and eight for the store

    @staticmethod
    def installed() -> bool:
        """Whether its programs are there."""
        try:
            for name in ("radosgw", "ceph-mon", "ceph-osd", "ceph"):
                program(name, INSTALL)
        except FileNotFoundError:
            return False
        return True

    def environment(self) -> dict[str, str]:
        """What a client needs; Ceph 16 answers 411 or 501 to an upload with a trailer."""
        only = "when_required"
        return {**super().environment(), "AWS_REQUEST_CHECKSUM_CALCULATION": only}

    def _start(self) -> None:
        first = not (self.folder / "mon" / "store.db").exists()
        port = self.folder / "port"
        if not first and port.read_text() != str(self.port):  # the monitor's map holds it
            raise UserError(
                f"{self.folder} is of a Ceph at port {port.read_text()}, not {self.port}: "
                "start it there, or in an empty folder"
            )
        self._configure()
        write_private(port, str(self.port))
        if first:
            self._make_monitor()
        self._launch("mon", "ceph-mon", "-i", "a")
        self._wait_for("mon", self.port + 1)
        if first:
            identity = str(uuid.uuid4())
            self._run("ceph", "--connect-timeout", "30", "osd", "new", identity)
            self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", identity)
        else:  # else the monitor waits 10 s for the address of the one that has ended
            self._run("ceph", "--connect-timeout", "30", "osd", "down", "0")
        self._launch("osd", "ceph-osd", "-i", "0")
        self.processes.wait("osd", self._store_is_up, seconds=60)
        self._launch("rgw", "radosgw", "-n", "client.rgw")
        if not (self.folder / "user").exists():
            self._make_user()
        self._wait_for("rgw", self.port)

    def stop(self) -> None:
        for name in reversed(self.processes.names()):  # a store without its monitor ends slowly
            self.processes.end(name)

    def _configure(self) -> None:
        for part in ("run", "log", "mon", "osd", "rgw"):
            (self.folder / part).mkdir(parents=True, exist_ok=True, mode=0o700)
        fsid = self.folder / "fsid"
        if not fsid.exists():
            write_private(fsid, str(uuid.uuid4()))
        text = Template(SETTINGS).substitute(
            fsid=fsid.read_text(),
            host=LOOPBACK,
            folder=self.folder,
            port=self.port,
            mon_port=self.port + 1,
            osd_port=self.port + 2,
            last_port=self.port + self.num_ports - 1,
        )
        write_private(self.folder / "ceph.conf", text)

    def _make_monitor(self) -> None:
        fsid = (self.folder / "fsid").read_text()
        address, file = f"[v2:{LOOPBACK}:{self.port + 1}]", str(self.folder / "monmap")
        made = ("--create", "--clobber", "--fsid", fsid, "--addv", "a", address, file)
        self._run("monmaptool", *made, configured=False)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", file)

    def _make_user(self) -> None:
        """Make the one user; its secret goes by standard input, not by a command line."""
        admin = ("radosgw-admin", "-n", "client.rgw")
        self._run(*admin, "user", "create", "--uid", USER, "--display-name", USER)
        record = json.loads(self._run(*admin, "metadata", "get", f"user:{USER}"))
        record["data"]["keys"] = [
            {"user": USER, "access_key": self.access_key, "secret_key": self.secret_key}
        ]
        self._run(*admin, "metadata", "put", f"user:{USER}", text=json.dumps(record))
        write_private(self.folder / "user", USER)

    def _launch(self, name: str, command: str, *arguments: str) -> None:
        settings = str(self.folder / "ceph.conf")
        path = program(command, INSTALL)
        self.processes.start(name, [path, "-c", settings, *arguments, "-f"], dict(os.environ))

    def _run(
        self, command: str, *arguments: str, text: str | None = None, configured: bool = True
    ) -> str:
        settings = ("-c", str(self.folder / "ceph.conf")) if configured else ()
        done = subprocess.run(
            [program(command, INSTALL), *settings, *arguments],
            input=text,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            words = (done.stderr.strip() or done.stdout.strip()).split("\n")[-1]
            raise OSError(f"{Path(command).name} {arguments[0]} failed: {words}")
        return done.stdout

    def _store_is_up(self) -> bool:
        try:
            return "1 up" in self._run("ceph", "--connect-timeout", "5", "osd", "stat")
        except OSError:
            return False
