"""Which scenes a day of a series holds, where the store has some and a run brings others."""

from collections.abc import Iterable, Mapping, Sequence, Set

from nec.archive import Contributor


def merged(
    before: Sequence[Contributor],
    offered: Mapping[str, Contributor],
    *,
    done: Set[str],
    failed: Set[str],
) -> tuple[tuple[Contributor, ...], dict[str, str]]:
    """Merge the scenes that a day holds with those that a run brings.

    What is complete stays; what comes back different takes its own place while that is not
    complete; what failed and does not come back goes; what is new comes in. But no scene comes or
    goes where others that the run does not bring would have to be read again.

    Parameters
    ----------
    before : sequence of Contributor
        What the store says.
    offered : mapping of str to Contributor
        Scenes of the run that could be read, by name.
    done, failed : set of str
        Shards of the day, as ``row.column``, that are as `before` says; that failed. Others are
        pending, perhaps in other hands.

    Returns
    -------
    tuple of Contributor
        By name; what the day is to hold.
    dict of str to str
        Why, by name of the offered scenes that are left out.
    """
    kept: dict[str, Contributor] = {}
    refused: dict[str, str] = {}
    giving_way: dict[str, Contributor] = {}
    for scene in before:
        theirs = offered.get(scene.name)
        shards = set(scene.shards)
        if theirs is None:
            gives_way = bool(shards & failed)
        elif theirs.digest == scene.digest:
            gives_way = False
        else:
            gives_way = not shards <= done
            if not gives_way:
                refused[scene.name] = (
                    "it has changed since it was encoded, and is left as it was; encode it under "
                    "another name, or to another folder"
                )
        (giving_way if gives_way else kept)[scene.name] = scene
    # Nothing of these is at hand but what is stored.
    absent = [s for s in kept.values() if s.name not in offered or s.name in refused]
    for name, scene in {**giving_way, **offered}.items():
        if name in kept:
            continue
        met = _met(scene, absent)
        if name in giving_way:
            met |= _met(giving_way[name], absent)
        if name not in offered:
            if met:
                kept[name] = scene
            continue
        if not met:
            kept[name] = scene
            continue
        refused[name] = (
            f"it shares shards with {', '.join(sorted(met))}, which this run does not bring as "
            "it was; pass the scenes of a day together"
        )
        if name in giving_way:
            kept[name] = giving_way[name]
    return tuple(kept[name] for name in sorted(kept)), refused


def _met(scene: Contributor, others: Iterable[Contributor]) -> set[str]:
    """Return the names of those that a scene shares shards with."""
    return {other.name for other in others if set(other.shards) & set(scene.shards)}
