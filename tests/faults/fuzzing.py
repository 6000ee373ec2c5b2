"""Run one fuzz target under atheris: `python -m faults.fuzzing TARGET [libFuzzer's options] [FILE]`.

With a FILE it tries that input alone. Without one it makes inputs until `-runs` are done, guided by the
coverage of our code, and begins with the target's corpus.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["karma"]):
    from faults import fuzz_targets


def main() -> None:
    target, *arguments = sys.argv[1:]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = folder / "words"
        words.write_text("".join(f'"{_escaped(word)}"\n' for word in fuzz_targets.dictionary()))
        inputs = folder / "inputs"
        inputs.mkdir()
        for number, content in enumerate(fuzz_targets.corpus(target)):
            (inputs / f"{number:04}").write_bytes(content)
        if not any(not argument.startswith("-") for argument in arguments):
            arguments += [f"-dict={words}", str(inputs)]
        atheris.Setup([target, *arguments], fuzz_targets.TARGETS[target])
        atheris.Fuzz()


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    main()
