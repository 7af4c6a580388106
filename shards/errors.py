"""Errors a user can act on: the command line prints their sentence and exits with 1. Anything else keeps its traceback."""


class PretrackError(Exception):
    """What is wrong, where, and what to do, in one sentence."""


class SettingsError(PretrackError):
    """A configuration that cannot be used."""


class ShardError(PretrackError):
    """A shard, or a member of one, that is missing or damaged."""
