"""What a user may put into a script: values that hold no secret and can be quoted, names that need no quotes."""

from __future__ import annotations

import os
import re

from layerzoo.errors import bad_value

_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSW(OR)?D|CREDENTIALS?)$", re.IGNORECASE)
_SECRET = re.compile(
    r"://[^/\s@]+:[^/\s@]+@"  # a password in an address
    r"|\b(hf_|wandb_v1_|gh[pousr]_|github_pat_|glpat-|xox[abp]-|sk-)\w{16,}|\bAKIA[0-9A-Z]{16}\b|(?<![0-9a-f])[0-9a-f]{40}(?![0-9a-f])")


def check_text(what: str, text: str) -> str:
    """A value for a command line, to be quoted where it goes into a script.

    Args:
        what: its option, for messages.
        text: the value.
    Raises:
        ValueError: for characters that do not print, and for what is or looks like a secret.
    """
    if not text.isprintable():
        raise bad_value(what, got=ascii(text), expected="characters that print, on one line", do="Take the others out.")
    inside = [name for name, value in os.environ.items() if _SECRET_NAME.search(name) and len(value) >= 8 and value in text]
    if inside or _SECRET.search(text):
        got = f"the value of ${inside[0]}" if inside else "what looks like a key or a password"
        raise bad_value(
            what, got=got, expected="no secret: it would stand in the script, the recipe and the manifest",
            do="Leave it in the environment, which jobs inherit.")
    return text


def check_override(text: str) -> str:
    """As `check_text`, for "key=value"."""
    key = text.partition("=")[0]
    return check_text(f"--{key}" if key.isprintable() else "option", text)


def check_name(what: str, text: str, pattern: str, expected: str) -> str:
    """A value that stands without quotes, as in lines of #SBATCH.

    Args:
        what: its option, for messages.
        text: the value.
        pattern: of the whole of it.
        expected: in words.
    Raises:
        ValueError: for any other value.
    """
    if not re.fullmatch(pattern, text, re.ASCII):
        raise bad_value(what, got=ascii(text), expected=expected, do="Correct it; nothing was written.")
    return check_text(what, text)
