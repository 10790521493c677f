"""The commands and programs that documents show, so that tests can run them."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]


def blocks(document: str, language: str) -> list[str]:
    """The fenced blocks of a language in a document, in order."""
    text = (ROOT / document).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(document: str) -> list[list[str]]:
    """The words of each line of a document's sh blocks, without its remark."""
    lines = "".join(blocks(document, "sh")).splitlines()
    split = [shlex.split(line, comments=True) for line in lines]
    return [words for words in split if words]


def first_line(example: str) -> list[str]:
    """The words of the command that an example's first line shows."""
    return shlex.split((ROOT / "examples" / example).read_text().splitlines()[0].removeprefix("#"))
