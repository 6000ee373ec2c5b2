"""The themes: dark, light and high contrast. Moods keep their meaning in all of them."""

from __future__ import annotations

from textual.theme import Theme

THEMES: tuple[Theme, ...] = (
    Theme(
        name="dark",
        primary="#5fafff",
        secondary="#87d7d7",
        accent="#d7af5f",
        warning="#ffaf5f",
        error="#ff5f5f",
        success="#87d787",
        foreground="#d0d4da",
        background="#12151a",
        surface="#12151a",
        panel="#1e232b",
        dark=True,
        variables={"dim": "#7f8894", "production": "#8b1a1a", "on-production": "#ffffff"},
    ),
    Theme(
        name="light",
        primary="#005faf",
        secondary="#00706f",
        accent="#875f00",
        warning="#9a5a00",
        error="#c00000",
        success="#1f7a1f",
        foreground="#1c1f24",
        background="#fbfbf8",
        surface="#fbfbf8",
        panel="#e6e8ea",
        dark=False,
        variables={"dim": "#6a7078", "production": "#b00000", "on-production": "#ffffff"},
    ),
    Theme(
        name="contrast",
        primary="#00ffff",
        secondary="#ffffff",
        accent="#ffff00",
        warning="#ffff00",
        error="#ff6060",
        success="#00ff00",
        foreground="#ffffff",
        background="#000000",
        surface="#000000",
        panel="#000000",
        dark=True,
        variables={"dim": "#d0d0d0", "production": "#ffff00", "on-production": "#000000"},
    ),
)
NAMES: tuple[str, ...] = tuple(theme.name for theme in THEMES)
