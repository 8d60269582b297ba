import logging

import pytest

from bcl_ray.runs.driver_log import LOG_FILE, log_to_file


@pytest.mark.parametrize("propagates", [True, False])  # before and after Ray is imported
def test_messages_of_libraries_go_to_the_file_while_this_driver_has_the_run(
    tmp_path, monkeypatch, propagates
):
    monkeypatch.setattr(logging.getLogger("ray"), "propagate", propagates)
    mine = [True]
    with log_to_file(tmp_path / "run", lambda: mine[0]):
        logging.getLogger("ray").error("a node died")
        logging.getLogger("anything").warning("slow")
        mine[0] = False
        logging.getLogger("anything").warning("written by nobody")
    logging.getLogger("anything").warning("after the end")
    text = (tmp_path / "run" / LOG_FILE).read_text()
    assert "ERROR ray: a node died" in text
    assert "WARNING anything: slow" in text
    assert len(text.splitlines()) == 2


def test_a_full_disk_prints_nothing(tmp_path, capsys, monkeypatch):
    (tmp_path / LOG_FILE).symlink_to("/dev/full")
    with log_to_file(tmp_path, lambda: True):
        for _ in range(3):
            logging.getLogger("anything").warning("no room for this")
    assert capsys.readouterr().err == ""
