"""Sessions at a prompt, as text: scripts/*.txt hold what was typed and what was answered, to the letter.

A line ``$ …`` is typed; ``$ ls DIR`` lists a directory. What follows is standard output; lines that begin with ``! ``
are standard error; ``? N`` is an exit code other than 0. Ids and their beginnings are shown as ID (ID1, ID2, … in the
order of their first appearance), times as TIME, durations until then as DAYS, fingerprints as FINGERPRINT, milliseconds
and megabytes as N, the list of known schemes as SCHEMES, the directory of the test as $DIR, who began a rotation as
ACTOR; several blanks are two, empty lines none.

To write the answers anew, for review: WRITE_SCRIPTS=1 pytest tests/unit/cli/test_scripts.py.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

from .conftest import Goatherd

SCRIPTS = sorted((Path(__file__).parent / "scripts").glob("*.txt"))


def normalized(text: str, directory: Path, ids: dict[str, str]) -> str:
    def name(match: re.Match[str]) -> str:
        return ids.setdefault(match.group(), f"ID{len(ids) + 1}")

    text = text.replace(str(directory), "$DIR")
    text = re.sub(r"\b[a-z0-9]{24}\b", name, text)  # one in some thousands has no digit
    for whole, shown in ids.items():
        text = text.replace(whole[:8], shown)
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", "TIME", text)
    text = re.sub(r"in \d+ days \(TIME", "in DAYS (TIME", text)
    text = re.sub(r"\b[0-9a-f]{16}\b", "FINGERPRINT", text)
    text = re.sub(r"(nown schemes: )[a-z0-9+-]+(?:, [a-z0-9+-]+)*", r"\1SCHEMES", text)
    text = re.sub(r"after \d+\.\d s", "after SECONDS", text)
    text = re.sub(r"\b\d+(?:\.\d)? (ms|MB)\b", r"N \1", text)
    # Lists of ids are sorted by the ids themselves, which are drawn.
    text = re.sub(r"\bID\d+(?: ID\d+)+\b", lambda ids: " ".join(sorted(ids[0].split())), text)
    text = re.sub(r"\b\S+@\S+:\d+ at TIME", "ACTOR at TIME", text)
    return re.sub(r"\n\n+", "\n", re.sub(r"  +", "  ", text)).lstrip("\n")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_what_is_typed_gets_the_answer_that_is_written(goatherd: Goatherd, script: Path, tmp_path: Path) -> None:
    expected = script.read_text()
    ids: dict[str, str] = {}
    told = []
    for line in expected.splitlines():
        if line.startswith("#"):
            told.append(line)
        elif line.startswith("$ "):
            told.append(line)
            words = shlex.split(line.removeprefix("$ ").replace("$DIR", str(tmp_path)))
            if words[0] == "ls":
                names = (
                    sorted(path.name for path in Path(words[1]).iterdir()) if Path(words[1]).is_dir() else ["(none)"]
                )
                told += names
                continue
            assert words[0] == "goatherd"
            result = goatherd(*words[1:])
            told += normalized(result.out, tmp_path, ids).splitlines()
            told += [f"! {one}" for one in normalized(result.err, tmp_path, ids).splitlines()]
            if result.code:
                told.append(f"? {result.code}")
    answer = "\n".join(told) + "\n"
    if os.environ.get("WRITE_SCRIPTS"):
        script.write_text(answer)
    assert answer == expected


def test_there_are_scripts() -> None:
    assert len(SCRIPTS) >= 4
