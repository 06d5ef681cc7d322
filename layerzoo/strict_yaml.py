"""YAML as recipes use it: plain values with their lines; what two YAML versions read differently is refused."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from layerzoo.errors import Refusal

_RESAVE = "Save the file as plain UTF-8."
_LARGEST, _DEEPEST = 64 * 1024, 20  # bytes of a file, levels of nesting: far beyond any recipe

_WORDS = {"": None, "~": None, "null": None, "Null": None, "NULL": None} | {
    text: text.lower() == "true" for text in ("true", "True", "TRUE", "false", "False", "FALSE")}
_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]{1,18}(\.[0-9]*)?)(e[-+]?[0-9]{1,2})?", re.IGNORECASE)
_UNCLEAR = re.compile(
    r"y|n|yes|no|on|off"  # switches in YAML 1.1, words in 1.2
    r"|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?"  # base 60
    r"|[-+]?0[0-9_]+|[-+]?0[box][0-9a-f_]+|[-+]?[0-9][0-9_]*_[0-9_]*(\.[0-9_]*)?"  # base 8, 2, 16; underscores
    r"|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([ t].*)?"  # dates
    r"|[-+]?\.(inf|nan)|[-+]?[0-9]{19,}|[-+]?[0-9.]+e[-+]?[0-9]{3,}", re.IGNORECASE)  # no number that can be used


class RecipeError(Refusal):
    """A recipe or an option that is refused: where, which key, what it got, what was expected, what to do."""

    def __init__(self, where: str, key: str, *, got: str, expected: str, do: str):
        key, got = (text if len(text) <= 240 else f"{text[:237]}..." for text in (key, got))
        super().__init__(f"{where}: {key}\n  got: {got}\n  expected: {expected}\n  do: {do}")


class RecipeRefused(RecipeError):
    """A recipe that asks for code to be run."""

    exit_code = 77


def read(path: Path) -> tuple[dict, dict[tuple, str]]:
    """The mapping in a file, and "file:line" of each key path.

    Raises:
        RecipeError: for anything but one plain mapping of text, numbers, switches, lists and mappings.
    """
    try:
        size = path.stat().st_size
        raw = path.read_bytes() if path.is_file() and size <= _LARGEST else b""
    except OSError as error:
        got = error.strerror.lower()
        raise RecipeError(str(path), "recipe", got=got, expected="a file that can be read", do="Check its permissions.") from error
    if not path.is_file() or size > _LARGEST:
        got = f"{size} bytes" if path.is_file() else "no plain file"
        raise RecipeError(str(path), "recipe", got=got, expected=f"a file of at most {_LARGEST} bytes", do="Give the path of one recipe.")
    if raw.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise RecipeError(f"{path}:1", "encoding", got="a byte-order mark", expected="UTF-8 without one", do=_RESAVE)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{path}:{line}", "encoding", got=f"the byte 0x{raw[error.start]:02x}", expected="UTF-8", do=_RESAVE) from error
    where: dict[tuple, str] = {}
    value = _parse(text, str(path), where)
    if not isinstance(value, dict):
        got = "an empty file" if value is None else f"{_shown(value)} at the top"
        raise RecipeError(
            f"{path}:1", "recipe", got=got, expected="a mapping with meta, model and data",
            do="Start from `layerzoo recipe copy quickstart my.yaml`.")
    return value, where


def parse_option(key: str, text: str, where: str) -> object:
    """The value of a command-line option: a scalar, or a list or mapping in brackets."""
    return _parse(text, where, {}) if text[:1] in ("{", "[", '"', "'") else _scalar(text, key, where)


def _parse(text: str, source: str, where: dict[tuple, str]) -> object:
    try:
        loader = _Loader(text)
        loader.source = source
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, source) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        got = f"the character U+{error.character:04X}"
        raise RecipeError(f"{source}:{line}", "syntax", got=got, expected="printable text", do="Delete it.") from error
    return None if node is None else _value(node, (), source, where)


class _Loader(yaml.SafeLoader):
    source, depth = "", 0

    def compose_node(self, parent, index):
        event = self.peek_event()
        at = f"{self.source}:{event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent) or event.anchor:
            got = f"the anchor or alias {event.anchor}"
            raise RecipeError(at, "syntax", got=got, expected="values written out", do="Repeat the value.")
        if event.tag and ("python" in event.tag or not event.tag.startswith("tag:yaml.org")):
            got = f"the tag {event.tag}"
            raise RecipeRefused(at, "syntax", got=got, expected="data, never code", do="Do not run recipes that need this tag.")
        if event.tag or self.depth == _DEEPEST:
            got = f"the tag {event.tag}" if event.tag else f"more than {_DEEPEST} levels"
            raise RecipeError(at, "syntax", got=got, expected="plain text, numbers, lists and mappings", do="Write the value plainly.")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _syntax_error(error: yaml.MarkedYAMLError, source: str) -> RecipeError:
    mark = error.problem_mark or error.context_mark
    if "'\\t'" in str(error.problem):
        return RecipeError(f"{source}:{mark.line + 1}", "syntax", got="a tab", expected="spaces", do="Indent with spaces.")
    got = ", ".join(part for part in (error.problem, error.context) if part)
    do = f"Check the brackets, quotes, colons and indentation about column {mark.column + 1}."
    return RecipeError(f"{source}:{mark.line + 1}", "syntax", got=got, expected="YAML", do=do)


def _value(node: yaml.Node, path: tuple, source: str, where: dict[tuple, str]) -> object:
    at = f"{source}:{node.start_mark.line + 1}"
    where.setdefault(path, at)
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node.value, dotted(path), at) if node.style is None else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_value(child, (*path, i), source, where) for i, child in enumerate(node.value)]
    found: dict = {}
    for key_node, child in node.value:
        at = f"{source}:{key_node.start_mark.line + 1}"
        key = _value(key_node, ("key",), source, {})
        if not isinstance(key, str):
            raise RecipeError(at, dotted(path), got=f"{_shown(key)} as a key", expected="a name", do="Write the name of an option.")
        if key in found:
            first = where[(*path, key)].rpartition(":")[2]
            got = f"the key again, first on line {first}"
            raise RecipeError(at, dotted((*path, key)), got=got, expected="each key once", do="Delete one of the two.")
        where[(*path, key)] = at
        found[key] = _value(child, (*path, key), source, where)
    return found


def _scalar(text: str, key: str, where: str) -> object:
    """YAML 1.2's reading of a plain scalar, and 1e-3 as a number; what 1.1 reads differently is refused."""
    if text in _WORDS:
        return _WORDS[text]
    if _is_unclear(text):
        raise RecipeError(
            where, key, got=f"{text} without quotes", expected="a value that every YAML version reads alike",
            do=f'Write true or false for a switch, a finite decimal number for a number, "{text}" for text.')
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def _is_unclear(text: str) -> bool:
    return len(text) <= 64 and _UNCLEAR.fullmatch(text) is not None  # nobody writes a longer number, and matching takes quadratic time


def dotted(path: tuple) -> str:
    """A key path as the command line writes it."""
    return ".".join(map(str, path)) or "recipe"


def _shown(value: object) -> str:
    return f"{value!r} ({type(value).__name__})"


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data):
        return True


def _write_text(dumper: _Dumper, text: str) -> yaml.Node:
    plain = text not in _WORDS and not _is_unclear(text) and not _INT.fullmatch(text) and not _FLOAT.fullmatch(text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


_Dumper.add_representer(str, _write_text)


def write(value: dict) -> str:
    """Text that `read` gives back as `value`."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
