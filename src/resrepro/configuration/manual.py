"""`resrepro COMMAND --help`: what can be said, by default what, and what it means.

What a key means is the comment behind it in the file that gives its default, and stands nowhere
else.
"""

import shutil
import textwrap
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import yaml
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from resrepro.configuration.schema import flatten

WIDTHS = (60, 110)  # columns, at least and at most
INDENT = 34  # of the meanings


def manual(command: str, composed: DictConfig, config_dir: str | None) -> str:
    """The help text of a command.

    Args:
        command: its name.
        composed: its configuration, with Hydra's part.
        config_dir: the user's own folder of configurations, if any.
    """
    loader = GlobalHydra.instance().config_loader()
    choices = reversed(composed.hydra.runtime.choices.items())  # as the defaults list has them
    chosen = {group: choice for group, choice in choices if not group.startswith("hydra/")}
    container = cast(dict[str, Any], OmegaConf.to_container(composed, resolve=False))
    texts = container.pop("hydra")["help"]
    about = meanings(command, chosen, config_dir)
    lines = [texts["header"], ""]
    if chosen:
        lines.append("Choices (group=NAME):")
        for group, choice in chosen.items():
            options = ", ".join(loader.get_group_options(group))
            lines += _entry(f"{group}={_said(choice)}", options)
        lines.append("")
    lines.append("Keys and their values by default (key=VALUE):")
    for key, value in flatten(container).items():
        if not isinstance(value, dict):  # a group of which nothing is chosen
            lines += _entry(f"{key}={_said(value)}", about.get(key, ""))
    return "\n".join([*lines, "", texts["footer"]])


def meanings(command: str, chosen: dict[str, Any], config_dir: str | None = None) -> dict[str, str]:
    """What each key of a command means.

    A file of a group that does not say it of a key means what the group's others say.
    """
    package = files("resrepro.conf")
    about = comments((package / f"{command}.yaml").read_text("utf-8"))
    for group, choice in chosen.items():
        others = sorted(
            file.name for file in (package / group).iterdir() if file.name.endswith(".yaml")
        )
        texts = [
            (package / group / name).read_text("utf-8")
            for name in others
            if name != f"{choice}.yaml"
        ]
        own = [
            package / group / f"{choice}.yaml",
            Path(config_dir or "") / group / f"{choice}.yaml",
        ]
        texts += [file.read_text("utf-8") for file in own if file.is_file()]  # the last one counts
        prefix = group.replace("/", ".")
        for text in texts:
            about |= {f"{prefix}.{key}": words for key, words in comments(text).items()}
    return about


@cache
def comments(text: str) -> dict[str, str]:
    """The comment behind each key of a YAML file, by the key with dots."""
    lines, found = text.splitlines(), {}

    def look(node: Any, prefix: str) -> None:
        for key, value in node.value:
            end = key.end_mark
            if isinstance(value, yaml.ScalarNode) or value.flow_style:
                end = value.end_mark
            _, mark, comment = lines[min(end.line, len(lines) - 1)][end.column :].partition("# ")
            if mark:
                found[f"{prefix}{key.value}"] = comment.strip()
            if isinstance(value, yaml.MappingNode):
                look(value, f"{prefix}{key.value}.")

    if isinstance(root := yaml.compose(text), yaml.MappingNode):
        look(root, "")
    return found


def _said(value: Any) -> str:
    """A value as it is said on the command line; a long list by its first."""
    if isinstance(value, list):
        said = f"[{','.join(map(_said, value))}]"
        return said if len(said) < 2 * INDENT else f"[{_said(value[0])},…]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _entry(said: str, meaning: str) -> list[str]:
    least, most = WIDTHS
    width = min(max(shutil.get_terminal_size().columns, least), most)
    beside = textwrap.wrap(meaning, width - INDENT, break_on_hyphens=False)
    if len(said) + 4 > INDENT:
        return [f"  {said}", *(" " * INDENT + line for line in beside)]
    first, *others = beside or [""]
    return [f"  {said:<{INDENT - 2}}{first}".rstrip(), *(" " * INDENT + line for line in others)]
