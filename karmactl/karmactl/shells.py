"""The scripts with which bash, zsh and fish complete, and what karmactl answers to them.

A value may be anything that somebody called a series, so no script lets the shell read one as code: bash gets
it quoted, the other two quote what they insert themselves.
"""

from __future__ import annotations

import os

from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
    split_arg_string,
)

VARIABLE = "_KARMACTL_COMPLETE"

_BASH = """\
%(complete_func)s() {
    local line type value quoted prefix word=${COMP_LINE:0:COMP_POINT}
    word=${word##*[[:space:]]}
    COMPREPLY=()
    while IFS= read -r line; do
        type=${line%%%%,*} value=${line#*,}
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain)
                # A series may be called $(…).
                printf -v quoted %%q "$value"
                # What bash replaces begins behind the last : or = of the word.
                for prefix in "${word%%"${word##*[:=]}"}" "${word##*=}"; do
                    prefix=${prefix%%"${prefix##*[:=]}"}
                    [[ $prefix && $quoted == "$prefix"* ]] && quoted=${quoted#"$prefix"} && break
                done
                COMPREPLY+=("$quoted")
                ;;
        esac
    done < <(env %(complete_var)s=bash_complete COMP_LINE="${COMP_LINE:0:COMP_POINT}" \\
        COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD="$COMP_CWORD" "$1" 2>/dev/null)
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""

_ZSH = """\
#compdef %(prog_name)s

%(complete_func)s() {
    local type key descr
    local -a plain described response
    (( $+commands[%(prog_name)s] )) || return 1

    response=("${(@f)$(env %(complete_var)s=zsh_complete COMP_WORDS="${words[*]}" \\
        COMP_CWORD=$((CURRENT-1)) %(prog_name)s 2>/dev/null)}")
    for type key descr in ${response}; do
        case $type in
            dir) _path_files -/ ;;
            file) _path_files -f ;;
            plain) if [[ $descr == _ ]]; then plain+=("$key"); else described+=("$key:$descr"); fi ;;
        esac
    done
    (( $#described )) && _describe -V unsorted described -U
    # Without -Q, so that zsh quotes what it inserts.
    (( $#plain )) && compadd -U -V unsorted -a plain
}

# As a file of $fpath this is the function's body, each time it is called; read with source it registers it.
if [[ $funcstack[1] == _%(prog_name)s ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""

_FISH = """\
function %(complete_func)s
    set -l line (commandline -cp | string collect)
    set -l response (env %(complete_var)s=fish_complete COMP_LINE=$line %(prog_name)s 2>/dev/null)
    for completion in $response
        set -l metadata (string split -m 1 -- "," $completion)
        switch $metadata[1]
            case dir
                __fish_complete_directories $metadata[2]
            case file
                __fish_complete_path $metadata[2]
            case plain
                printf '%%s\\n' $metadata[2]
        end
    end
end

complete --no-files --command %(prog_name)s --arguments "(%(complete_func)s)"
"""


def _line() -> str:
    """The line up to the cursor; empty where an older script asks."""
    return os.getenv("COMP_LINE", "")


def _split(line: str) -> tuple[list[str], str]:
    """Return the words of a line up to the cursor without the program's own, and the one at the cursor."""
    words = split_arg_string(line)
    # A space behind the last word begins the next, unless it is quoted: then one more letter joins the word.
    if not words or len(split_arg_string(line + "x")) > len(words):
        return words[1:], ""
    return words[1:-1], words[-1]


class _Bash(BashComplete):
    source_template = _BASH

    def get_completion_args(self) -> tuple[list[str], str]:
        return _split(_line()) if _line() else super().get_completion_args()


class _Zsh(ZshComplete):
    source_template = _ZSH

    def format_completion(self, item: CompletionItem[str]) -> str:
        if not item.help:
            return super().format_completion(item)
        # _describe takes backslashes for escapes.
        value = item.value.replace("\\", "\\\\")
        return super().format_completion(CompletionItem(value, item.type, item.help))


class _Fish(FishComplete):
    source_template = _FISH

    def get_completion_args(self) -> tuple[list[str], str]:
        return _split(_line()) if _line() else super().get_completion_args()


KINDS: dict[str, type[ShellComplete]] = {"bash": _Bash, "zsh": _Zsh, "fish": _Fish}
"""What completes in each shell."""


def register() -> None:
    """Let click answer with these."""
    for name, kind in KINDS.items():
        add_completion_class(kind, name)
