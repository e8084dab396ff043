"""Completion for shells: a short script of each asks this module, which reads the parser of the command line itself.

So commands, options and choices are always those of the installed version, and runs those of the configuration in the
current folder, or of what --root and --preset on the line name. The libraries for this (shtab, argcomplete) would bring
a dependency and leave that part to be written all the same.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from wmse.cli_config import read_project
from wmse.errors import WmseError

# bash cuts words at "@", ":" and "=", which names of runs hold: so its own list of words is left aside, and what stands
# before the last cut is taken off the answers. No answer means: names of files.
SCRIPTS = {
    "bash": r"""
_wmse() {
    local line=${COMP_LINE:0:COMP_POINT} words word before
    read -ra words <<<"$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    word=${words[${#words[@]} - 1]}
    before=${word%"${word##*[$COMP_WORDBREAKS]}"}
    mapfile -t COMPREPLY < <("${words[0]}" completion bash --words "${words[@]:1}" 2>/dev/null)
    COMPREPLY=("${COMPREPLY[@]#"$before"}")
}
complete -o default -F _wmse wmse
""",
    "zsh": r"""
#compdef wmse
_wmse() {
    local -a found
    found=(${(f)"$("${words[1]}" completion zsh --words "${(@)words[2,CURRENT]}" 2>/dev/null)"})
    if (( ${#found} )); then
        compadd -- "${found[@]}"
    else
        _files
    fi
}
if [[ ${funcstack[1]} == _wmse ]]; then
    _wmse "$@"
else
    compdef _wmse wmse
fi
""",
    "fish": r"""
function __wmse_complete
    set -l words (commandline -opc)
    set -l word (commandline -ct)
    set -l found ($words[1] completion fish --words $words[2..] "$word" 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\n' $found
    else
        __fish_complete_path "$word"
    end
end
complete -c wmse -f -a '(__wmse_complete)'
""",
}
Given = Mapping[str, str]  # The values of the options before the cursor.


def script(shell: str) -> str:
    """What the shell is to read."""
    return SCRIPTS[shell].strip()


def complete(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """What may stand for the last of the `words` after the program's name, sorted; nothing where files belong."""
    *before, word = words or [""]
    positions = [action for action in parser._actions if not action.option_strings]
    waiting: argparse.Action | None = None  # The option whose value comes next.
    given: dict[str, str] = {}
    for i, previous in enumerate(before, 1):
        name, equals, value = previous.partition("=")
        if option := _option(parser, name):
            waiting = None if equals or option.nargs == 0 else option
            given |= {option.dest: value} if equals else {}
        elif waiting:
            given[waiting.dest] = previous
            waiting = waiting if waiting.nargs in ("*", "+") else None
        elif positions and isinstance(positions[0], argparse._SubParsersAction):
            command = positions[0].choices.get(previous)
            return complete(command, words[i:]) if command else []
        elif positions and positions[0].nargs not in ("*", "+"):
            positions.pop(0)
    name, equals, _ = word.partition("=")
    if equals and (option := _option(parser, name)):
        found = [f"{name}={value}" for value in _values(option, given)]
    elif word.startswith("-"):
        shown = (action for action in parser._actions if action.help != argparse.SUPPRESS)
        found = [name for action in shown for name in action.option_strings]
    else:
        action = waiting or next(iter(positions), None)
        found = _values(action, given) if action else []
    return sorted({value for value in found if value.startswith(word)})


def _option(parser: argparse.ArgumentParser, name: str) -> argparse.Action | None:
    return next((action for action in parser._actions if name in action.option_strings), None)


def _values(action: argparse.Action, given: Given) -> list[str]:
    """The values of an argument or option, as far as they can be listed."""
    if action.choices:
        return [str(choice) for choice in action.choices]
    kind = action.metavar if isinstance(action.metavar, str) else action.dest
    with contextlib.suppress(WmseError, OSError):  # without a configuration there is nothing to list
        return list(VALUES[kind.lower()](given)) if kind.lower() in VALUES else []
    return []


def _presets(given: Given) -> Iterable[str]:
    from wmse.config.recipes import FOLDER

    return (path.stem for path in (FOLDER / "presets").glob("*.yaml"))


def _benchmarks(given: Given) -> Iterable[str]:
    from wmse.config import benchmarks

    with contextlib.suppress(WmseError, OSError):
        _runs(given)  # reads the configuration, whose own folders are benchmarks from then on
    return benchmarks()


def _runs(given: Given) -> Iterable[str]:
    options = argparse.Namespace(root=Path(given.get("root", "")), preset=given.get("preset"))
    return [spec.name for spec in read_project(options).runs]


# By the name that an argument has in the help.
VALUES: dict[str, Callable[[Given], Iterable[str]]] = {
    "run": _runs,
    "preset": _presets,
    "benchmark": _benchmarks,
    "device": lambda given: ("auto", "cpu", "cuda"),
}
