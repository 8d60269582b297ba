"""The commands of docs/plugins.md, as they are written there."""

import re
import shlex
from pathlib import Path

import pytest

from tests.e2e.conftest import Command

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(600)]
PAGE = Path(__file__).parents[2] / "docs" / "plugins.md"


def test_a_loss_a_backbone_and_a_source_of_ones_own_are_trained_with(tmp_path):
    module, commands = re.findall(r"^```(?:python)?\n(.+?)^```", PAGE.read_text(), re.M | re.S)
    (tmp_path / module.split("\n")[0].removeprefix("# ")).write_text(module)
    shard, train = (shlex.split(line)[1:] for line in commands.strip().split("\n"))
    short = ["train.epochs=1", "scale.workers=1", "tracking.report=false", "tracking.run=own"]
    for words in (shard, [*train, *short], ["evaluate", "own"]):
        command = Command(tmp_path, *words)
        assert command.wait() == 0, command.output
    assert re.search(r"own +│ focal +│", command.output)
