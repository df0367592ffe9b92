"""What the library raises when the caller's input, not the library, is at fault.

The message is one line: what came, what was expected, how to mend it. Commands print it as it stands.
"""


class UserError(Exception):
    """The world is not as asked for: a missing file, a damaged cache, a refused download. Commands exit with 1."""


class UsageError(UserError):
    """The request itself makes no sense: an unknown name, a fraction of zero. Commands exit with 2."""


class CacheError(UserError):
    """A cache file is absent, damaged, unfinished, or holds something else than what was asked for."""


class RankEndedError(UserError):
    """Another of the processes that work together has ended. Its text says how to go on, where that is known."""


def missing_extra(package: str, extra: str) -> UserError:
    """The error for an optional dependency that is not installed; names the extra that brings it."""
    return UserError(f"{package} is not installed: pip install 'featcache[{extra}]'")


def one_of(kind: str, given: str, known: list[str]) -> UsageError:
    """The error for an unknown name; offers the closest known ones, or all where they are few."""
    import difflib

    near = difflib.get_close_matches(given, known, n=3, cutoff=0.6)
    if near:
        return UsageError(f"unknown {kind} {given!r}: did you mean {' or '.join(near)}?")
    shown = ", ".join(known[:12]) + (f" and {len(known) - 12} more" if len(known) > 12 else "")
    return UsageError(f"unknown {kind} {given!r}: expected one of {shown}")
