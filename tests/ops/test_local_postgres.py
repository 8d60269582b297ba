"""PostgreSQL behind MLflow: its data stay, and a password is needed."""

import shutil

import psutil
import pytest

from bcl_ray.ops.local.postgres import INSTALL, Postgres
from bcl_ray.ops.local.processes import Processes, program
from tests.s3_servers import free_block


@pytest.fixture
def processes(tmp_path):
    try:
        program("initdb", INSTALL)
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    found = Processes(tmp_path / "processes")
    yield found
    found.kill(*found.names())
    # Root's database is another user's, who cannot go where this test's folder is.
    shutil.rmtree((tmp_path / "postgres" / "data").resolve(), ignore_errors=True)


@pytest.mark.slow
def test_a_database_keeps_its_data_and_asks_for_a_password(tmp_path, processes, monkeypatch):
    import psycopg2

    def connect(password_file):
        monkeypatch.setenv("PGPASSFILE", str(password_file))
        monkeypatch.delenv("PGPASSWORD", raising=False)
        address = database.address.replace("postgresql+psycopg2", "postgresql")
        connection = psycopg2.connect(address)
        connection.autocommit = True
        return connection

    folder = tmp_path / "postgres"
    first = free_block(2)
    for number, port in enumerate((first, first + 1)):
        database = Postgres(folder, port, processes)
        database.start()
        with connect(database.environment()["PGPASSFILE"]) as there, there.cursor() as cursor:
            if number == 0:
                cursor.execute("create table kept as select 42 as answer")
            cursor.execute("select answer from kept")
            assert cursor.fetchall() == [(42,)]
        with pytest.raises(psycopg2.OperationalError, match="no password supplied"):
            connect(tmp_path / "none")
        listening = {
            held.laddr.ip
            for one in processes.tree("postgres")
            for held in one.net_connections()
            if held.status == psutil.CONN_LISTEN
        }
        assert listening == {"127.0.0.1"}
        processes.end("postgres")
        assert not processes.any_alive()
