"""The published test sets of blind face restoration, and how each is evaluated.

A name says little: two sets of different degradations circulate as CelebA-Test, and copies lack
pictures. So a result states how many pictures its set had and their digest, and what is listed here
only says what to expect.
"""

from typing import NamedTuple


class Protocol(NamedTuple):
    """A test set as papers use it."""

    pictures: int | None
    """Pictures that it is published with; None: any number."""
    has_hq: bool
    """Whether every LQ picture has its HQ one. Without it the reference is a set of other pictures,
    of FFHQ in the papers, with which only whole sets are compared."""
    where: str = ""
    """Where it is published."""


GFPGAN = "https://xinntao.github.io/projects/gfpgan"
CODEFORMER = "https://shangchenzhou.com/projects/CodeFormer"

PROTOCOLS = {
    "custom": Protocol(None, has_hq=True),
    "celeba-test": Protocol(3000, has_hq=True, where=GFPGAN),
    "lfw": Protocol(1711, has_hq=False, where=GFPGAN),
    "webphoto": Protocol(407, has_hq=False, where=GFPGAN),
    "wider": Protocol(970, has_hq=False, where=CODEFORMER),
}
"""Every protocol by the name that --protocol has for it."""


def count_note(protocol: str, count: int) -> str:
    """Say that a set has another number of pictures than the published one; "" if it has not."""
    expected = PROTOCOLS[protocol]
    if expected.pictures in (None, count):
        return ""
    return (
        f"protocol {protocol}: {count:,} pictures; the published set has {expected.pictures:,} "
        f"({expected.where}), so that these values are not those of that set"
    )
