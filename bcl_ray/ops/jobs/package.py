"""A job's working directory: its entry point, and the files that its command names."""

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
    """A job's working directory, and its command."""

    files: dict[str, Path]
    """Files of this machine, by their names in the working directory."""
    words: tuple[str, ...]
    """The command's arguments, with the files' names in the working directory."""

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(file.stat().st_size for file in self.files.values())

    def write(self, folder: Path) -> None:
        """Copy the files into a folder."""
        for name, file in self.files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def pack(kind: str, words: Sequence[str], *, with_code: bool = False) -> Package:
    """Put the working directory of a job together.

    Args:
        kind: The command, such as train; its entry point is jobs/KIND.py.
        words: Arguments of the command. FILE and NAME=FILE are sent along if the file exists and
            has one of SUFFIXES, as are plugins that lie in the current folder.
        with_code: Send this bcl_ray too, which the job then uses instead of the cluster's.

    Raises:
        ValueError: An argument or a file holds what looks like a credential, or all files together
            have more than LIMIT bytes.
        OSError: A file cannot be read.
    """
    files = {f"jobs/{kind}.py": entry_point(kind)}
    packed_words = []
    for number, word in enumerate(words, 1):
        _refuse_secret(f"argument {number} of {kind}", word)
        prefix, file = _named_file(word)
        if file is None:
            packed_words.append(word)
            continue
        _refuse_secret_in(file)
        name = _free_name(file, files)
        files[name] = file
        packed_words.append(prefix + name)
    for module in _plugins(words, list(files.values())):
        for name, file in _module_files(module).items():
            _refuse_secret_in(file)
            files[name] = file
    if with_code:
        files |= {str(Path("bcl_ray", file.relative_to(PACKAGE))): file for file in _code()}
    packed = Package(files, tuple(packed_words))
    _refuse_large(packed)
    return packed


def entry_point(kind: str) -> Path:
    """The file jobs/KIND.py: beside the package in a checkout, inside it if installed.

    Raises:
        ValueError: There is none.
    """
    for folder in (PACKAGE.parent / "jobs", PACKAGE / "jobs"):
        if (folder / f"{kind}.py").is_file():
            return folder / f"{kind}.py"
    raise UserError(f"bcl_ray in {PACKAGE} comes without jobs/{kind}.py: install it again")


def _named_file(word: str) -> tuple[str, Path | None]:
    """The file in an argument FILE or NAME=FILE, and the text before it."""
    name, equals, value = word.partition("=")
    for prefix, text in (("", word), (name + equals, value)):
        if text.lower().endswith(SUFFIXES) and "://" not in text and Path(text).is_file():
            return prefix, Path(text)
    return "", None


def _plugins(words: Sequence[str], files: Iterable[Path]) -> Iterator[str]:
    """Top-level packages of the plugins that a command or its YAML files name."""
    texts = [word.replace("=", ": ", 1) for word in words if word.startswith("plugins=")]
    texts += [file.read_text() for file in files if file.suffix.lower() in (".yaml", ".yml")]
    for text in texts:
        with contextlib.suppress(yaml.YAMLError):  # the command itself reports it
            content = yaml.safe_load(text)
            modules = content.get("plugins") if isinstance(content, dict) else None
            if isinstance(modules, list):
                yield from (str(module).partition(".")[0] for module in modules)
    options = [value for option, value in pairwise(words) if option == "--plugin"]
    yield from (module.partition(".")[0] for module in options)


def _module_files(module: str) -> dict[str, Path]:
    """Files of a module or package in the current folder; none of an installed one."""
    single = Path(f"{module}.py")
    if single.is_file():
        return {single.name: single}
    return {str(file): file for file in sorted(Path(module).rglob("*.py"))}


def _free_name(file: Path, files: dict[str, Path]) -> str:
    """A name in the working directory that no other file has."""
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


def _refuse_secret_in(file: Path) -> None:
    _refuse_secret(str(file), file.read_text(encoding="utf-8", errors="replace"))


def _refuse_secret(where: str, text: str) -> None:
    if any(pattern.search(text) for pattern in SECRETS):  # the error must not show it
        raise UserError(
            f"{where} holds what looks like a credential, and a job's record shows everything it "
            "is sent: give the cluster's nodes a role, a Secret or an environment of their own"
        )


def _refuse_large(packed: Package) -> None:
    if packed.bytes <= LIMIT:
        return
    mib = 2**20
    largest = sorted(packed.files.values(), key=lambda file: -file.stat().st_size)[:3]
    listing = ", ".join(f"{file} ({file.stat().st_size / mib:,.0f} MiB)" for file in largest)
    raise UserError(
        f"the job's working directory is {packed.bytes / mib:,.0f} MiB, and at most "
        f"{LIMIT // mib} can be sent: {listing} {'are' if len(largest) > 1 else 'is'} the "
        "largest; put them where the cluster reads data, and name their URI"
    )
