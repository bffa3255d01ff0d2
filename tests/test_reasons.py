"""Every reason and every kind of ignored thing is documented, and no other is."""

import re
from pathlib import Path

from datasets.archives.found import IGNORED, LOSSES
from datasets.unusable import REASONS

README = Path(__file__).resolve().parents[1] / "pipelines" / "README.md"


def rows(section: str) -> list[list[str]]:
    """Return the cells of a section's table."""
    text = README.read_text().partition(f"### {section}\n")[2].partition("\n### ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_of_reasons_is_the_program_s() -> None:
    """Name, order and kind."""
    documented = {row[0].strip("`"): row[1] for row in rows("Why an image is dropped")}

    assert documented == {reason: str(kind) for reason, kind in REASONS.items()}
    assert list(documented) == list(REASONS)


def test_the_table_of_what_is_ignored_is_the_program_s() -> None:
    """Names, and which of them may hide images."""
    names = [row[0] for row in rows("What is ignored")]

    assert [re.sub(r"[`*]", "", name) for name in names] == list(IGNORED)
    assert {re.sub(r"[`*]", "", name) for name in names if "**" in name} == LOSSES


def test_every_reason_in_the_code_is_known() -> None:
    """Nothing is dropped for a reason that the table lacks."""
    root = README.parents[1]
    named = set()
    for path in [*root.glob("datasets/**/*.py"), *root.glob("pipelines/**/*.py")]:
        text = path.read_text()
        named |= set(re.findall(r"(?:UndecodableImage|UnreadableImage)\(\s*\"(\w+)\"", text))
        named |= set(re.findall(r"\"drop_reason\": \"(\w+)\"", text))

    assert named <= set(REASONS)
    assert len(named) > 10
