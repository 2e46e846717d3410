"""One subject under atheris: coverage guides the mutations, until the time is up or something is found.

Law: a subject is a module with SEEDS, the inputs to begin with, TOKENS, what is worth putting into them, and
`check(data)`, which tells what is wrong or None. It is imported here and not before, so that the branches of `zerver`
are seen and those of all else are not.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from hashlib import sha256
from pathlib import Path

import atheris  # type: ignore[import-not-found,unused-ignore]  # scripts/fuzz installs it when it is asked for


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("subject")
    parser.add_argument("--atheris", action="store_true", help="what has led here")
    parser.add_argument("--seconds", type=int, default=0, help="0: until it is interrupted")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path, help="where inputs are kept that reached something new")
    options = parser.parse_args()
    with atheris.instrument_imports(include=["zerver"]):
        subject = importlib.import_module(f"scripts.fuzzers.{options.subject}")

    def one(data: bytes) -> None:
        if (problem := subject.check(data)) is not None:
            raise AssertionError(f"{data!r}\n  {problem}")

    with tempfile.TemporaryDirectory() as folder:
        corpus: Path = options.corpus or Path(folder, "corpus")
        corpus.mkdir(exist_ok=True)
        words = Path(folder, "words")
        words.write_text("".join(f'"{_quoted(token)}"\n' for token in subject.TOKENS), "ascii")
        for seed in subject.SEEDS:
            (corpus / sha256(seed).hexdigest()[:16]).write_bytes(seed)
        limits = ("-max_len=4096", f"-max_total_time={options.seconds}", f"-seed={options.seed}", "-timeout=10")
        atheris.Setup([sys.argv[0], *limits, f"-dict={words}", f"-artifact_prefix={folder}/", str(corpus)], one)
        atheris.Fuzz()


def _quoted(token: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in token)


if __name__ == "__main__":
    main()
