"""What this package raises: one small hierarchy, each message one sentence with what, value and remedy."""


class SoraError(Exception):
    """Base of every error that a user can cause or must know of."""


class InvalidRequest(SoraError, ValueError):
    """A request that cannot be served as it stands; the message says what to use instead."""


class BundleError(SoraError):
    """A bundle that is missing, damaged, of another version, or not what its hashes say."""


class EngineError(SoraError):
    """An engine that cannot be made or run."""


class OutputError(SoraError):
    """A clip or receipt that cannot be written; nothing is left under the final name."""


class Cancelled(SoraError):
    """A generation that was stopped through its `CancelToken` between two steps."""


class BudgetExceeded(SoraError):
    """A generation that was stopped because what was left of its budget would not do; there is no clip."""
