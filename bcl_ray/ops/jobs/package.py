"""A job's working directory: its entry point, the files that its command names, no more."""

import contextlib
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import yaml

import bcl_ray
from bcl_ray.machine.errors import UserError

PACKAGE = Path(bcl_ray.__file__).parent
SUFFIXES = (".yaml", ".yml", ".txt", ".csv", ".tsv", ".lst", ".json")  # of files that are sent
LIMIT = 90 * 2**20  # bytes; Ray's dashboard takes 100 MiB, and answers 413 to more
SECRETS = (
    re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b"),  # AWS access keys
    re.compile(r"://[^/\s:@]*:[^/\s@]+@"),  # user:password in a URI
    re.compile(
        r"(secret|password|passwd|credential|token|access[_.-]?key|api[_.-]?key)[\w.-]*[\"']?"
        r"\s*[=:]\s*[\"']?[^\s\"'&]",
        re.IGNORECASE,
    ),
)


@dataclass(frozen=True)
class Package:
    """What a job is sent.

    Args:
        files: where each file goes in the working directory, and where it lies here.
        words: the command's arguments, with files named as they are in the working directory.
    """

    files: dict[str, Path]
    words: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """The size of all files."""
        return sum(file.stat().st_size for file in self.files.values())

    def write(self, folder: Path) -> None:
        """Fill a folder."""
        for name, file in self.files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def package(kind: str, words: Sequence[str], *, with_code: bool = False) -> Package:
    """The working directory of a job.

    Args:
        kind: name of the entry point: shard, train, evaluate.
        words: arguments of the command. A word FILE or NAME=FILE with a suffix of SUFFIXES whose
            file is there is sent along, and so are plugins that lie in the current folder.
        with_code: send this bcl_ray too; the cluster's own is then not used.

    Raises:
        ValueError: something that looks like a credential in the arguments or in a file that
            they name, or more than LIMIT bytes.
        OSError: a file that cannot be read.
    """
    files = {f"jobs/{kind}.py": entry_point(kind)}
    sent = []
    for number, word in enumerate(words, 1):
        _refuse_secret(f"argument {number} of {kind}", word)
        before, file = _named_file(word)
        if file is None:
            sent.append(word)
            continue
        _refuse_secret(str(file), file.read_text(encoding="utf-8", errors="replace"))
        name = _free_name(file, files)
        files[name] = file
        sent.append(before + name)
    for module in _plugins(words, list(files.values())):
        for name, file in _own_code(module).items():
            _refuse_secret(str(file), file.read_text(encoding="utf-8", errors="replace"))
            files[name] = file
    if with_code:
        files |= {str(Path("bcl_ray", file.relative_to(PACKAGE))): file for file in _code()}
    made = Package(files, tuple(sent))
    _refuse_large(made)
    return made


def entry_point(kind: str) -> Path:
    """The file of jobs/: beside the package in a checkout, in it where it is installed.

    Raises:
        ValueError: there is none.
    """
    for folder in (PACKAGE.parent / "jobs", PACKAGE / "jobs"):
        if (folder / f"{kind}.py").is_file():
            return folder / f"{kind}.py"
    raise UserError(f"bcl_ray in {PACKAGE} comes without jobs/{kind}.py: install it again")


def _named_file(word: str) -> tuple[str, Path | None]:
    """What stands before the name of a file in a word, and the file."""
    name, equals, value = word.partition("=")
    for before, text in (("", word), (name + equals, value)):
        if text.lower().endswith(SUFFIXES) and "://" not in text and Path(text).is_file():
            return before, Path(text)
    return "", None


def _plugins(words: Sequence[str], sent: Iterable[Path]) -> Iterator[str]:
    """Top packages of the plugins that a command or its experiment's file names."""
    texts = [word.replace("=", ": ", 1) for word in words if word.startswith("plugins=")]
    texts += [file.read_text() for file in sent if file.suffix.lower() in (".yaml", ".yml")]
    for text in texts:
        with contextlib.suppress(yaml.YAMLError):  # the command itself says what is wrong
            content = yaml.safe_load(text)
            modules = content.get("plugins") if isinstance(content, dict) else None
            if isinstance(modules, list):
                yield from (str(module).partition(".")[0] for module in modules)
    given = [after for before, after in pairwise(words) if before == "--plugin"]
    yield from (module.partition(".")[0] for module in given)


def _own_code(module: str) -> dict[str, Path]:
    """Files of a module or package in the current folder; an installed one is the cluster's."""
    single = Path(f"{module}.py")
    if single.is_file():
        return {single.name: single}
    return {str(file): file for file in sorted(Path(module).rglob("*.py"))}


def _free_name(file: Path, files: dict[str, Path]) -> str:
    name, number = f"files/{file.name}", 1
    while name in files and not files[name].samefile(file):
        number += 1
        name = f"files/{file.stem}-{number}{file.suffix}"
    return name


def _code() -> Iterator[Path]:
    for file in sorted(PACKAGE.rglob("*")):
        parts = file.relative_to(PACKAGE).parts
        hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
        if file.is_file() and not hidden:
            yield file


def _refuse_secret(where: str, text: str) -> None:
    if any(pattern.search(text) for pattern in SECRETS):  # it is not shown, here or anywhere
        raise UserError(
            f"{where} holds what looks like a credential, and a job's record shows everything it "
            "is sent: give the cluster's nodes a role, a Secret or an environment of their own"
        )


def _refuse_large(made: Package) -> None:
    if made.bytes <= LIMIT:
        return
    mib = 2**20
    largest = sorted(made.files.values(), key=lambda file: -file.stat().st_size)[:3]
    shown = ", ".join(f"{file} ({file.stat().st_size / mib:,.0f} MiB)" for file in largest)
    raise UserError(
        f"the job's working directory is {made.bytes / mib:,.0f} MiB, and at most {LIMIT // mib} "
        f"can be sent: {shown} {'are' if len(largest) > 1 else 'is'} the largest; put "
        "them where the cluster reads data, and name their URI"
    )
