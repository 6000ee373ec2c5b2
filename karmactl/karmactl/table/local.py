"""Commands about karmactl itself, and the door to any operation."""

from __future__ import annotations

from karmactl.table.entries import TEXT, Argument, Command, Option, listing, thing

NAME = Argument("name", "context", "name of the context")
SETTINGS = (
    Option("nodes", help="its nodes' addresses, with commas", metavar="HOST:PORT,…"),
    Option("token-from-file", "path", "file with its token", metavar="FILE"),
    Option("token-from-env", help="environment variable with its token", metavar="NAME"),
    Option("production", "choice", "mark it: destructive commands ask for its name", choices=("yes", "no")),
)

COMMANDS: tuple[Command, ...] = (
    Command(
        "call",
        "call.call",
        "Send any operation with any fields.",
        arguments=(
            Argument("operation", "operation", "name of the operation, as tree.top"),
            Argument("field", "text", "NAME=TEXT or NUMBER, or NAME:=JSON", required=False, many=True),
        ),
        shape=TEXT,
        examples=(
            ("call tree.top series=api_requests limit=3", "numbers are sent as numbers"),
            (
                'call counter.sum series=api_requests key=42 range:=\'{"from":20260501,"to":20260531}\'',
                "JSON",
            ),
        ),
        details="The answer is printed as JSON, or as --output says when it is an object or a list of them.",
        given_effect="operation",
    ),
    Command(
        "shell",
        "shell.shell",
        "Type commands one after another, with completion, history and hints.",
        examples=(
            ("shell", "\\? explains it"),
            ("shell --context prod --read-only", "every command with these options"),
        ),
        details="A line is what would follow karmactl. Options of the shell hold for every command in it.",
        given_effect="operation",
    ),
    Command(
        "context list",
        "context.list_",
        "List the contexts.",
        shape=listing("current", "context", "nodes", "production", "token"),
        examples=(("context list", ""),),
    ),
    Command(
        "context use",
        "context.use",
        "Make a context the current one.",
        arguments=(NAME,),
        shape=thing("current"),
        examples=(("context use prod", ""),),
    ),
    Command(
        "context add",
        "context.add",
        "Add a context; the first one becomes the current one.",
        arguments=(Argument("name", "text", "name of the new context"),),
        options=(
            Option("nodes", help="its nodes' addresses, with commas", metavar="HOST:PORT,…", required=True),
            *SETTINGS[1:],
        ),
        shape=thing("context"),
        examples=(
            ("context add dev --nodes 127.0.0.1:8080", ""),
            ("context add prod --nodes db1:8080,db2:8080 --token-from-env PROD_TOKEN --production yes", ""),
        ),
    ),
    Command(
        "context edit",
        "context.edit",
        "Change a context, or open the file in $VISUAL or $EDITOR.",
        arguments=(Argument("name", "context", "name of the context; the file if left out", required=False),),
        options=SETTINGS,
        shape=thing("context"),
        examples=(
            ("context edit", "the file, checked afterwards"),
            ("context edit prod --nodes db1:8080,db3:8080", "one setting; comments stay"),
        ),
    ),
    Command(
        "context validate",
        "context.validate",
        "Check the file of contexts.",
        shape=listing("level:state", "place", "problem"),
        examples=(("context validate", ""),),
        details="Exit code 2 when there is an error.",
    ),
    Command(
        "context show",
        "context.show",
        "Show the settings that a command would run with, and where each came from.",
        arguments=(
            Argument("name", "context", "name of a context, as if given by --context", required=False),
        ),
        shape=listing("setting", "value", "source"),
        examples=(("context show", ""), ("context show prod --node 10.0.0.9:8080", "with another node")),
        details="Tokens are masked.",
    ),
    Command(
        "completion",
        "completion.script",
        "Print a shell's completion script.",
        arguments=(Argument("shell", "choice", "bash, zsh or fish", choices=("bash", "zsh", "fish")),),
        examples=(
            ("completion bash > ~/.local/share/bash-completion/completions/karmactl", "bash"),
            ('completion zsh > "${fpath[1]}/_karmactl"', "zsh"),
            ("completion fish > ~/.config/fish/completions/karmactl.fish", "fish"),
        ),
        details="It completes commands, options, contexts, nodes, series, snapshot files and operations.",
    ),
    Command(
        "spec",
        "spec.spec",
        "Print every command with its arguments, options, effect, exit codes and output, as JSON.",
        shape=thing("name", "version", "exit_codes", "global_options", "commands"),
        examples=(("spec | jq '.commands[].name'", ""),),
    ),
    Command(
        "version",
        "spec.version",
        "Print the version of karmactl.",
        shape=thing("version"),
        examples=(("version", ""),),
    ),
)
