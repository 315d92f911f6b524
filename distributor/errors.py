"""The one root of every error that the program raises on purpose.

An error carries a ``code`` and named arguments; words for people are made at the edge
(``messages.explain``), so the same error reads right in the console, on the command line and in JSON.
"""


class DistributorError(Exception):
    """Something that a person or an operator can put right.

    ``code`` is a key of ``assets/locale/zh_CN.toml``; ``facts`` fill its placeholders and must hold no
    secret and no story text. ``detail`` is for the log.
    """

    def __init__(self, code: str, detail: str = "", /, **facts: object) -> None:
        super().__init__(code)
        self.code = code
        self.detail = detail
        self.facts = facts

    def __str__(self) -> str:
        said = ", ".join(f"{name}={value}" for name, value in self.facts.items())
        return ": ".join(part for part in (self.code, said, self.detail) if part)


class Refused(DistributorError):
    """The request is wrong: the person who made it must change it. Nothing was changed."""


class Stale(Refused):
    """What the person acted on has changed meanwhile. Show the present state and let them decide again."""


class Unusable(DistributorError):
    """The installation is wrong (settings, disk, database, lock): an operator must act before it can run."""
