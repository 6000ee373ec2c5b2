"""Which part of a remote shell's output is the script's own. Pure.

A login shell may print before it runs anything (`.bashrc`, `config.fish`, `.zshenv`, a message of the day)
and after (an EXIT trap). So a script prints a random token when it begins and again, with its exit code, when
it ends, on both streams; what stands outside the two tokens is the login shell's.
"""

from __future__ import annotations


class Framing:
    """One script's output. `token` is random and appears nowhere else; feed standard output as it comes."""

    def __init__(self, token: str) -> None:
        self._token = token
        self._begin = f"{token} begin\n"
        self._end = f"{token} end "
        self._pending = ""
        self.noise = ""
        """What came before the script began."""
        self.has_begun = False
        self.code: int | None = None
        """The script's exit code, None until it has said so."""

    def wrap(self, script: str) -> str:
        """Return the script with the lines that print the token at both ends."""
        token = self._token
        return (
            f'trap \'karma_code=$?; trap - EXIT; printf "%s end %d\\n" {token} $karma_code; '
            f'printf "%s end %d\\n" {token} $karma_code >&2\' EXIT\n'
            f"printf '%s begin\\n' {token}; printf '%s begin\\n' {token} >&2\n{script}"
        )

    def feed(self, text: str) -> str:
        """Take standard output in; returns what of it is certainly the script's."""
        if self.code is not None:
            return ""
        self._pending += text
        if not self.has_begun:
            noise, mark, rest = self._pending.partition(self._begin)
            if not mark:
                return ""
            self.noise, self._pending, self.has_begun = noise, rest, True
        output, mark, rest = self._pending.partition(self._end)
        if mark:
            code, newline, _ = rest.partition("\n")
            if newline and code.isdigit():
                self.code, self._pending = int(code), ""
                return output
            self._pending = mark + rest
            return output
        # The end's mark may have arrived in part; everything before its possible start is output.
        kept = next(
            (size for size in range(len(self._end) - 1, 0, -1) if output.endswith(self._end[:size])), 0
        )
        self._pending = output[len(output) - kept :]
        return output[: len(output) - kept]

    def rest(self) -> str:
        """Return what was held back, when no more comes: the script's output if it began, else noise."""
        rest, self._pending = self._pending, ""
        if not self.has_begun:
            self.noise += rest
            return ""
        return rest

    def errors(self, text: str) -> str:
        """Return the script's part of its whole standard error."""
        _, mark, rest = text.partition(self._begin)
        return rest.partition(self._end)[0] if mark else text
