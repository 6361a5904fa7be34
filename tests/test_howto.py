"""The commands of docs/howto.md run as they are printed, and print what is shown: every line but those with times."""

import re
import shlex
from pathlib import Path

import pytest

from docs.howto import PAGE, QUESTIONS, ROOT
from tgrad.device import compute
from tgrad.profiler.cli import main

TEXT = PAGE.read_text(encoding="utf-8")
SECTIONS = re.findall(r"^## (.*?)\n.*?^```console\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
TIMED = re.compile(r"\d (ms|us|s)\b|host us/op|time +┃|^[━╇]+$")


def untimed(lines):
    return [line.strip() for line in lines if line.strip() and not TIMED.search(line)]


def test_every_question_is_answered():
    assert [title for title, _ in SECTIONS] == [question for question, _, _ in QUESTIONS]
    for (_, console), (_, words, commands) in zip(SECTIONS, QUESTIONS):
        assert tuple(re.findall(r"^\$ (.*)$", console, re.MULTILINE)) == commands and words in TEXT


FIRST, *LATER = SECTIONS


@pytest.mark.skipif(compute.type == "cuda", reason="written without a GPU: with one there are more columns")
@pytest.mark.parametrize(
    ("title", "console"), [FIRST, *(pytest.param(*s, marks=pytest.mark.thorough) for s in LATER)],
    ids=[title for title, _ in SECTIONS],
)  # fmt: skip
def test_the_commands_print_what_is_shown(title, console, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("examples").symlink_to(ROOT / "examples")
    for part in console.split("$ ")[1:]:
        command, *shown = part.splitlines()
        code = main(shlex.split(command)[1:])
        printed = capsys.readouterr()
        assert printed.err == "" and code == ("REGRESSION" in part or "Leak:" in part)
        assert untimed(printed.out.splitlines()) == untimed(shown)
