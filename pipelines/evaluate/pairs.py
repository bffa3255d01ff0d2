"""Which picture is compared with which: by their keys, and every mismatch by name."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from datasets.sources import ImageRef, list_images
from infra.config import digest
from infra.errors import UsageError
from infra.paths import AnyPath, path_of
from pipelines.evaluate.config import SetsConfig
from pipelines.restore.config import STATE as RESTORED
from pipelines.restore.outputs import is_first_restoration

LISTED = 20  # names in a message
METHOD = "="  # before a method's name, in the roles of its pictures

Pictures = Mapping[str, ImageRef]
"""Pictures by key."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """The pictures of an evaluation; all but the distribution have the same keys, in one order."""

    methods: Mapping[str, Pictures]
    """The restored pictures of each method, by its name."""
    hq: Pictures | None = None
    posterior_mean: Pictures | None = None
    lq: Pictures | None = None
    distribution: Pictures | None = None
    """The set that whole sets are compared with; None: statistics in a file, or nothing."""
    statistics: str = ""
    """A file with those."""
    left_out: int = 0
    """Keys that not all folders have."""

    def of_key(self, key: str) -> dict[str, ImageRef]:
        """Return the pictures of a key that are measured or compared with, by role.

        A role is "hq", "posterior_mean", or "=NAME" for the method NAME.
        """
        roles = {f"{METHOD}{name}": found[key] for name, found in self.methods.items()}
        if self.hq is not None:
            roles["hq"] = self.hq[key]
        if self.posterior_mean is not None:
            roles["posterior_mean"] = self.posterior_mean[key]
        return roles

    @property
    def keys(self) -> list[str]:
        """Return the keys of all methods' pictures, in order."""
        return list(next(iter(self.methods.values())))


def find_pairs(sets: SetsConfig, kept: AnyPath, has_hq: bool) -> Pairs:
    """List all folders and pair their pictures.

    Args:
        sets: the folders.
        kept: folder of what is kept of archives.
        has_hq: whether --reference holds the HQ picture of every key.

    Raises:
        UsageError: an empty folder, a folder given twice, or pictures without a partner, by name.
    """
    folders = named_folders(sets.restored)
    methods = {name: listed(f"--restored {name}", where, kept) for name, where in folders.items()}
    reference = listed("--reference", sets.reference, kept) if sets.reference else None
    others = {
        name: listed(f"--{name.replace('_', '-')}", where, kept)
        for name in ("posterior_mean", "lq")
        if (where := getattr(sets, name))
    }
    distribution, statistics = reference, ""
    if sets.distribution.endswith(".npz"):
        distribution, statistics = None, sets.distribution
    elif sets.distribution:
        distribution = listed("--distribution", sets.distribution, kept)
    aligned = {f"--restored {name}": found for name, found in methods.items()}
    aligned |= {"--reference": reference} if has_hq and reference is not None else {}
    aligned |= {f"--{name.replace('_', '-')}": found for name, found in others.items()}
    keys = common_keys(aligned) if sets.common else equal_keys(aligned)

    def of(found: Pictures) -> Pictures:
        return {key: found[key] for key in keys}

    hq = of(reference) if has_hq and reference is not None else None
    return Pairs(
        methods={name: of(found) for name, found in methods.items()},
        hq=hq,
        distribution=hq if distribution is reference and hq is not None else distribution,
        statistics=statistics,
        left_out=len({key for found in aligned.values() for key in found}) - len(keys),
        **{name: of(found) for name, found in others.items()},
    )


def named_folders(restored: Sequence[str]) -> dict[str, str]:
    """Read NAME=FOLDER of every method.

    Raises:
        UsageError: another form, or a name given twice.
    """
    folders: dict[str, str] = {}
    for text in restored:
        name, _, where = text.partition("=")
        if not name or not where or "/" in name:
            raise UsageError(f"--restored {text}: give NAME=FOLDER, such as ours=restored/")
        if name in folders:
            raise UsageError(f"--restored: the name {name} comes twice; give each folder its own")
        folders[name] = where
    return folders


def listed(option: str, where: str, kept: AnyPath) -> Pictures:
    """List the pictures of a folder or an archive, by key.

    Of a folder that `pipelines.restore` made, they are the first restoration of every picture.

    Raises:
        UsageError: there is nothing, or no picture in it.
    """
    if not path_of(where).exists():
        raise UsageError(f"{option} {where}: no such folder")
    found = list_images((where,), kept).images
    if (path_of(where) / RESTORED).is_dir():
        found = tuple(ref for ref in found if is_first_restoration(ref.file))
    if not found:
        raise UsageError(f"{option} {where}: no picture in it")
    return {ref.key: replace(ref, origin=option) for ref in found}


def equal_keys(folders: Mapping[str, Pictures]) -> list[str]:
    """Return the keys that all folders have.

    Raises:
        UsageError: a folder lacks some, with their names.
    """
    everything = {key for found in folders.values() for key in found}
    said = [
        f"{option} lacks {len(lacking):,}: {names(lacking)}"
        for option, found in folders.items()
        if (lacking := sorted(everything - found.keys()))
    ]
    if said:
        raise UsageError(
            "pictures are paired by their names without the extension, and some have no partner. "
            f"{'. '.join(said)}. Rename them, or give --common to evaluate those that all have"
        )
    return sorted(everything)


def common_keys(folders: Mapping[str, Pictures]) -> list[str]:
    """Return the keys that all folders have, whatever else they hold.

    Raises:
        UsageError: there is none.
    """
    keys = set.intersection(*(set(found) for found in folders.values()))
    if not keys:
        raise UsageError(f"--common: no picture has the same name in {', '.join(folders)}")
    return sorted(keys)


def names(keys: Sequence[str]) -> str:
    """List the first keys, and how many more there are."""
    more = len(keys) - LISTED
    return ", ".join(keys[:LISTED]) + (f" and {more:,} more" if more > 0 else "")


def mark(ref: ImageRef | None) -> str:
    """Identify a picture by its place, length and stamp: a changed file has another mark."""
    if ref is None:
        return ""
    return digest([ref.path, ref.member, ref.offset, ref.size, ref.stamp])[:16]


def keys_digest(keys: Iterable[str]) -> str:
    """Identify a test set by its keys, for metrics that look at nothing else of it."""
    return digest(sorted(keys))
