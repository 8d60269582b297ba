"""OpenStack Swift with its S3 interface, which pip installs and which needs no root.

It works with the default settings of pyarrow and boto3. A conditional write ("create the object
only if it does not exist") is not atomic: Swift checks first, then writes.
"""

import os
import pwd
import secrets
import subprocess
import sys
from string import Template

from bcl_ray.machine.errors import UserError
from bcl_ray.ops.local.ports import LOOPBACK
from bcl_ray.ops.local.processes import program
from bcl_ray.ops.local.secret import write_private
from bcl_ray.ops.local.store import REGION, S3Server

INSTALL = "pip install 'bcl-ray[local]'"
HASHES = """\
[swift-hash]
swift_hash_path_prefix = $prefix
swift_hash_path_suffix = $suffix
[storage-policy:0]
name = one
default = yes
"""
STORAGE = """\
[DEFAULT]
bind_ip = $host
bind_port = $port
workers = $workers
user = $user
swift_dir = $folder/etc
devices = $folder/disk
mount_check = false
recon_cache_path = $folder/cache
[pipeline:main]
pipeline = $name-server
[app:$name-server]
use = egg:swift#$name
[object-updater]
interval = 5
"""
PROXY = """\
[DEFAULT]
bind_ip = $host
bind_port = $port
workers = 2
user = $user
swift_dir = $folder/etc
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck listing_formats s3api tempauth bulk slo dlo \
proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:s3api]
use = egg:swift#s3api
location = $region
max_upload_part_num = 10000
[filter:tempauth]
use = egg:swift#tempauth
user_$account_user = $secret_key .admin
[filter:bulk]
use = egg:swift#bulk
[filter:slo]
use = egg:swift#slo
max_manifest_segments = 10000
[filter:dlo]
use = egg:swift#dlo
"""
# Runs in a process of its own: importing Swift lets eventlet patch the standard library.
RINGS = """
import sys
from swift.common.ring.builder import RingBuilder
folder, port = sys.argv[1], int(sys.argv[2])
for offset, name in enumerate(("account", "container", "object"), 1):
    ring = RingBuilder(8, 1, 0)
    ring.add_dev(dict(region=1, zone=1, ip="127.0.0.1", port=port + offset, device="d1", weight=1))
    ring.rebalance(seed=1)
    ring.get_ring().save(f"{folder}/{name}.ring.gz")
"""
# The updater has no option that names its settings.
UPDATER = """
import sys
from swift.common import utils
utils.set_swift_dir(sys.argv[1])
sys.argv = ["swift-object-updater", sys.argv[1] + "/object-server.conf", "--verbose"]
from swift.obj.updater import main
main()
"""


class Swift(S3Server):
    """A Swift server; its access key has the form account:user."""

    access_key = "local:bcl-ray"
    num_ports = 4

    def _start(self) -> None:
        command = program("swift-proxy-server", INSTALL)
        self._configure()
        etc, environment = self.folder / "etc", dict(os.environ)
        # The proxy comes last: without the other servers, it answers that buckets do not exist.
        for names in (("account", "container", "object"), ("proxy",)):
            for name in names:
                server = command.replace("proxy", name)
                self.processes.start(
                    name, [server, str(etc / f"{name}-server.conf"), "--verbose"], environment
                )
            for name in names:
                self._wait_for(name, self._port_of(name))
        self.processes.start("updater", [sys.executable, "-c", UPDATER, str(etc)], environment)

    def stop(self) -> None:
        """End the server, the proxy first; its data stay."""
        self.processes.end("proxy")
        super().stop()

    def _port_of(self, name: str) -> int:
        return self.port + ("proxy", "account", "container", "object").index(name)

    def _configure(self) -> None:
        etc = self.folder / "etc"
        for part in ("etc", "cache", "disk/d1"):
            (self.folder / part).mkdir(parents=True, exist_ok=True, mode=0o700)
        if not (etc / "swift.conf").exists():  # with other hashes, stored objects are not found
            prefix, suffix = secrets.token_hex(16), secrets.token_hex(16)
            text = Template(HASHES).substitute(prefix=prefix, suffix=suffix)
            write_private(etc / "swift.conf", text)
        common = {"host": LOOPBACK, "folder": self.folder, "user": _user()}
        for name, port in zip(("account", "container", "object"), self.ports[1:], strict=True):
            text = Template(STORAGE).substitute(
                common, name=name, port=port, workers=int(name == "object")
            )
            write_private(etc / f"{name}-server.conf", text)
        text = Template(PROXY).substitute(
            common,
            port=self.port,
            region=REGION,
            account_user=self.access_key.replace(":", "_"),
            secret_key=self.secret_key,
        )
        write_private(etc / "proxy-server.conf", text)
        subprocess.run(  # noqa: S603 (each time, for the ports may have changed)
            [sys.executable, "-c", RINGS, str(etc), str(self.port)], check=True, timeout=60
        )


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        raise UserError(
            f"Swift needs a user with an entry in /etc/passwd, and user {os.getuid()} has none: "
            "add one, or run this as another user"
        ) from None
