"""Which picture is compared with which: by their keys, and every mismatch by name."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from datasets.sources import ImageRef
from infra.config import digest
from infra.errors import UsageError
from infra.paths import AnyPath, fetched, path_of, sha256
from models.checkpoint import CheckpointError
from models.metrics.frechet import Statistics, read_statistics
from pipelines.evaluate.config import SetsConfig
from pipelines.jobs import inputs
from pipelines.restore.config import STATE as RESTORED
from pipelines.restore.outputs import is_first_restoration

LISTED = 20  # names in a message
METHOD = "="  # before a method's name, in the roles of its pictures

Pictures = Mapping[str, ImageRef]
"""Pictures by key."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A set that is given by its statistics alone."""

    sha256: str
    """Of the file."""
    statistics: Statistics


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
    stored: Stored | None = None
    """The set that takes its place, of a file."""
    left_out: int = 0
    """Keys that not all folders have."""

    @property
    def roles(self) -> dict[str, Pictures]:
        """Return the pictures that are measured or compared with key by key, by their role.

        A role is "hq", "posterior_mean", or "=NAME" for the method NAME.
        """
        roles = {f"{METHOD}{name}": found for name, found in self.methods.items()}
        others = {"hq": self.hq, "posterior_mean": self.posterior_mean}
        return roles | {role: found for role, found in others.items() if found is not None}

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
        UsageError: an empty folder, a name given twice, a file of statistics that cannot be used,
            or pictures without a partner, by name.
    """
    folders = named_folders(sets.restored)
    hq, distribution, stored = references(sets, kept, has_hq)
    methods = {name: listed(f"--restored {name}", where, kept) for name, where in folders.items()}
    others = {
        name: listed(f"--{name.replace('_', '-')}", where, kept)
        for name in ("posterior_mean", "lq")
        if (where := getattr(sets, name))
    }
    aligned = {f"--restored {name}": found for name, found in methods.items()}
    aligned |= {"--reference": hq} if hq is not None else {}
    aligned |= {f"--{name.replace('_', '-')}": found for name, found in others.items()}
    keys = common_keys(aligned) if sets.common else equal_keys(aligned)

    def of(found: Pictures) -> Pictures:
        return {key: found[key] for key in keys}

    paired = of(hq) if hq is not None else None
    return Pairs(
        methods={name: of(found) for name, found in methods.items()},
        hq=paired,
        distribution=paired if distribution is hq else distribution,
        stored=stored,
        left_out=len({key for found in aligned.values() for key in found}) - len(keys),
        **{name: of(found) for name, found in others.items()},
    )


def references(
    sets: SetsConfig, kept: AnyPath, has_hq: bool
) -> tuple[Pictures | None, Pictures | None, Stored | None]:
    """Return the HQ pictures, and the pictures or the statistics that whole sets are compared with.

    Raises:
        UsageError: what cannot be that.
    """
    option, where = "--distribution", sets.distribution
    hq = None
    if has_hq and sets.reference:
        if is_statistics(sets.reference):
            raise UsageError(
                f"--reference {sets.reference}: statistics, and --protocol {sets.protocol} pairs "
                "every picture with its HQ one; give their folder, and this file as --distribution"
            )
        hq = listed("--reference", sets.reference, kept)
    elif sets.reference:
        if where:
            raise UsageError(
                f"--protocol {sets.protocol} has no HQ pictures, so that --reference and "
                "--distribution both name the set to compare whole sets with; give one of them"
            )
        option, where = "--reference", sets.reference
    if is_statistics(where):
        return hq, None, stored_statistics(option, where)
    return hq, listed(option, where, kept) if where else hq, None


def is_statistics(where: str) -> bool:
    """Tell a file of statistics by its name from pictures."""
    return where.endswith(".npz")


def stored_statistics(option: str, where: str) -> Stored:
    """Read a file of a set's statistics.

    Raises:
        UsageError: there is none, or it holds something else.
    """
    try:
        with fetched(path_of(where)) as file:
            statistics = read_statistics(file)
            return Stored(sha256(file), statistics)
    except CheckpointError as error:
        raise UsageError(f"{option} {error}") from error


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
    listing = inputs.listed((where,), kept, option)
    listing.prepare()
    found = listing.images
    if (path_of(where) / RESTORED).is_dir():
        found = tuple(ref for ref in found if is_first_restoration(ref.file))
    if not found:
        raise UsageError(f"{option} {where}: a job of pipelines.restore has restored none yet")
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
