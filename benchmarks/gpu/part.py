"""One part, in a process of its own: `python -m benchmarks.gpu.part ENTRY SETTINGS ROWS`."""

import json
import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from benchmarks.gpu.supervise import Settings


def main() -> None:
    entry, settings, file = sys.argv[1:]
    module, _, function = entry.partition(":")
    rows = getattr(import_module(module), function)(Settings(**json.loads(settings)))
    with Path(file).open("a") as out:
        for row in rows:
            content = asdict(row)
            content.pop("part")  # the supervisor knows its name
            out.write(json.dumps(content) + "\n")
            out.flush()


if __name__ == "__main__":
    main()
