"""Keys of the screens of playbooks, one after another, and what each leads to."""

from playing import RUN, StagePlayer
from pressing import Check, Way, at, copied, grid, notified, on, page, sees
from stage import Show

from karma_tui.player import Wish
from karma_tui.widgets.reader import Reader


def focused(name: str) -> Check:
    return lambda show: show.app.focused is not None and show.app.focused.id == f"field-{name}"


def filled(name: str, value: str) -> Check:
    return lambda show: show.app.screen.query_one(f"#field-{name}").value == value  # type: ignore[attr-defined]


def reader(show: Show) -> Reader:
    return show.app.screen.query_one(Reader)


def player(show: Show) -> StagePlayer:
    assert isinstance(show.app.player, StagePlayer)
    return show.app.player


def exported(show: Show, form: str) -> str:
    return "".join(path.read_text() for path in show.app.folder().glob(f"karma-plan-switchover-*.{form}"))


def letters(text: str) -> Way:
    """Press keys whatever comes of each."""
    return [(letter, lambda _: True) for letter in text]


def find(text: str) -> Way:
    """Filter a table."""
    return [
        ("slash", lambda _: True),
        *letters(text),
        ("enter", lambda show: show.app.focused is grid(show)),
    ]


PLAN: Way = [
    *find("swi"),
    ("enter", on("Form")),
    ("x", filled("reason", "x")),
    ("enter", sees("point of no return: promote")),
]
PLAY: Way = [*PLAN, ("r", on("Confirm")), *letters("prod"), ("enter", on("Approve"))]
WAYS: dict[str, tuple[list[str], Way]] = {
    "PlaybooksPage": (
        ["8"],
        [
            ("R", sees("rebuild-follower")),
            ("slash", lambda _: True),
            *((letter, lambda _: True) for letter in "rebuil"),
            ("d", sees("It follows the master, with the master's data.", "cannot be undone")),
            ("enter", lambda show: show.app.focused is grid(show)),
            ("Y", copied("karmactl playbook plan rebuild-follower --param node=db3 --context prod")),
            ("o", notified("no run was begun here")),
            ("r", on("RunsPage")),
            ("escape", on("PlaybooksPage")),
            ("p", on("Form")),
            ("escape", on("PlaybooksPage")),
            ("enter", on("Form")),
        ],
    ),
    "Form": (
        ["8"],
        [
            *find("reb"),
            ("enter", on("Form")),
            # The laggiest follower is filled in, and the first empty line has the cursor.
            ("enter", notified("reason must be given")),
            ("x", filled("reason", "x")),
            ("shift+tab", focused("node")),
            ("up", filled("node", "db2")),
            ("down", filled("node", "db3")),
            ("enter", lambda show: page(show) == "PlanPage" and sees("point of no return: rebuild")(show)),
            ("escape", on("PlaybooksPage")),
            # What was filled in stands there again.
            ("p", lambda show: page(show) == "Form" and filled("reason", "x")(show)),
            ("escape", on("PlaybooksPage")),
        ],
    ),
    "PlanPage": (
        ["8"],
        [
            *PLAN,
            ("k", lambda show: page(show) == "PlanPage"),
            ("j", lambda show: reader(show).scroll_y == 1),
            ("k", lambda show: reader(show).scroll_y == 0),
            ("G", sees("plan hash ")),
            ("g", lambda show: reader(show).scroll_y == 0),
            ("y", copied("NO UNDO clients write to the new master")),
            ("Y", copied("karmactl playbook run switchover --param to=db2 --reason x --plan-hash ")),
            ("e", lambda show: "NO UNDO" in exported(show, "txt")),
            ("E", lambda show: '"point_of_no_return": "promote"' in exported(show, "json")),
            (
                "p",
                lambda show: (
                    player(show).asked == [Wish("switchover", {}, "x")] * 2
                    and sees("point of no return")(show)
                ),
            ),
            ("r", sees("This will run switchover on prod; it loses nothing", "Type prod")),
            ("escape", on("PlanPage")),
            ("escape", on("PlaybooksPage")),
        ],
    ),
    "RunPage": (
        ["8"],
        [
            *PLAY,
            # What it asks comes by itself, and can be left for later.
            ("y", on("Approve")),
            ("enter", notified("that is neither yes nor no")),
            (
                "escape",
                lambda show: page(show) == "RunPage" and sees("it asks: Go on with repoint-others?")(show),
            ),
            ("a", on("Approve")),
            ("escape", on("RunPage")),
            ("up", lambda show: at(7)(show) and sees("fence", "lsn=120000")(show)),
            ("f", lambda show: at(8)(show) and sees("| it follows db1 still")(show)),
            ("Y", copied(f"karmactl playbook status {RUN} --context prod")),
            # Leaving the screen lets it go on.
            ("escape", on("PlanPage")),
            ("r", notified("a run is under way")),
            ("escape", on("PlaybooksPage")),
            ("o", on("RunPage")),
            ("x", on("Stop")),
            ("escape", on("RunPage")),
            ("ctrl+c", on("Stop")),
            ("escape", on("RunPage")),
            ("q", sees("leave the dashboard?")),
            ("escape", on("RunPage")),
            ("x", on("Stop")),
            (
                "p",
                lambda show: (
                    player(show).stopped == ["pause"] and sees("next: karmactl playbook resume")(show)
                ),
            ),
            ("Y", copied(f"karmactl playbook resume {RUN} --context prod")),
            ("A", sees(f"This will take back {RUN}", "Type prod")),
            ("escape", on("RunPage")),
            ("r", sees(f"This will go on with {RUN}", "Type prod")),
            ("escape", on("RunPage")),
        ],
    ),
    "Stop": (
        ["8"],
        [
            *PLAY,
            ("escape", on("RunPage")),
            ("x", on("Stop")),
            ("u", lambda show: player(show).stopped == ["undo"]),
        ],
    ),
    "RunsPage": (
        ["8", "r"],
        [
            ("down", at(1)),
            (
                "enter",
                lambda show: (
                    page(show) == "RunPage" and sees("new openssl", "whole", "no such service")(show)
                ),
            ),
            ("escape", on("RunsPage")),
            ("Y", copied("karmactl playbook history --context prod")),
            ("escape", on("PlaybooksPage")),
        ],
    ),
}
