"""This machine as a host."""

from __future__ import annotations

import asyncio
import codecs
import contextlib

from karma_playbooks.transports.shell import LinkLostError, OnOutput, Ran, UnreachableError

_BLOCK_BYTES = 65_536


class LocalShell:
    """Runs scripts in `sh` of this machine."""

    def where(self) -> str:
        """Return `here`."""
        return "here"

    async def open(self) -> None:
        """Connect: there is nothing to connect to."""

    async def script(self, text: str, on_output: OnOutput | None = None) -> Ran:
        """Run a script."""
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec("sh", "-s", stdin=pipe, stdout=pipe, stderr=pipe)
        except OSError as error:
            raise UnreachableError(f"sh cannot be started here: {error.strerror}") from error
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        errors = asyncio.ensure_future(process.stderr.read())
        parts = []
        # A block may end within a character.
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        try:
            process.stdin.write(text.encode())
            process.stdin.close()
            while block := await process.stdout.read(_BLOCK_BYTES):
                parts.append(decoder.decode(block))
                if on_output is not None:
                    on_output(parts[-1])
            code = await process.wait()
            said = (await errors).decode(errors="replace")
        except BaseException:
            errors.cancel()
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            raise
        if code < 0:
            raise LinkLostError(f"the shell was ended by signal {-code}")
        return Ran(code, "".join(parts), said)

    async def close(self) -> None:
        """Nothing is open."""
