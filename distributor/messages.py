"""Words for people: every code of an error, a finding, a reason or a state in Simplified Chinese.

Inside, things have codes and facts; words are made here and only at the edges (console, command line, mail, JSON
for people). They stand in ``assets/locale/zh_CN.toml`` and ``assets/locale/zh_CN.d/*.toml``, all merged:

* ``[error]`` ``[finding]`` ``[reason]``: code -> template. ``{name}`` is replaced by the fact of that name,
  ``{name|table}`` by the word that ``table`` has for it; a tuple of errors by their own messages, one a line.
* ``[state.<entity>]`` and ``[word.<table>]``: key -> word.

Nothing here raises for a missing code, fact, word or file: a message about trouble must not become the trouble.
What is missing is named in the text instead.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from distributor.errors import DistributorError, Unusable

__all__ = ["Catalogue", "assets_root", "catalogue", "explain", "explain_finding", "load", "reason", "word"]

PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]*)(?:\|([a-z][a-z0-9_.]*))?\}")


def assets_root() -> Path:
    """The folder of fonts, templates, words and demo data: in the wheel ``distributor/_assets``, else ``assets/``.

    Raises:
        Unusable: ``assets_missing``: neither is there, the installation is incomplete.
    """
    package = Path(__file__).resolve().parent
    for candidate in (package / "_assets", package.parent / "assets"):
        if candidate.is_dir():
            return candidate
    raise Unusable("assets_missing", path=str(package))


@dataclass(frozen=True)
class Catalogue:
    """Every word of one language. Tables are named with dots (``error``, ``state.delivery``, ``word.stage``).

    ``troubles`` lists, one line each, the files that could not be read and the keys that two files word differently
    (the first file's words are used); ``distributor check`` shows them.
    """

    tables: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    troubles: tuple[str, ...] = ()

    def template(self, table: str, key: str) -> str | None:
        """The words as written, or None."""
        return self.tables.get(table, {}).get(key)

    def word(self, table: str, key: str) -> str:
        """The word for one key of ``state.<entity>`` or of ``word.<table>`` (named by ``<table>``), else the key."""
        return self.template(table, key) or self.template(f"word.{table}", key) or key

    def fill(self, template: str, facts: Mapping[str, object]) -> str:
        """``template`` with its placeholders replaced; one without a fact stays as ``{name}``."""

        def value(found: re.Match[str]) -> str:
            name, table = found.groups()
            if name not in facts:
                return f"{{{name}}}"
            fact = facts[name]
            if isinstance(fact, tuple) and all(isinstance(each, DistributorError) for each in fact):
                return "\n".join(self.say("error", each.code, each.facts) for each in fact)
            return self.word(table, str(fact)) if table else str(fact)

        return PLACEHOLDER.sub(value, template)

    def say(self, table: str, code: str, facts: Mapping[str, object]) -> str:
        """The words for a code; without any, a plain sentence that names the code and the facts."""
        template = self.template(table, code)
        if template is not None:
            return self.fill(template, facts)
        said = "，".join(f"{name}={value}" for name, value in facts.items())
        return f"（代码 {code} 尚无文字说明{'：' + said if said else ''}）"


def load(root: Path) -> Catalogue:
    """Read ``locale/zh_CN.toml`` and, in the order of their names, ``locale/zh_CN.d/*.toml`` below ``root``."""
    tables: dict[str, dict[str, str]] = {}
    troubles: list[str] = []
    for path in [root / "locale" / "zh_CN.toml", *sorted((root / "locale" / "zh_CN.d").glob("*.toml"))]:
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            troubles.append(f"{path.name}: {error}")
            continue
        for table, key, text in _leaves(content):
            if not isinstance(text, str) or not table:
                troubles.append(f"{path.name}: {table}.{key} is not text in a table")
            elif tables.setdefault(table, {}).setdefault(key, text) != text:
                troubles.append(f"{path.name}: {table}.{key} has other words in another file")
    return Catalogue(tables, tuple(troubles))


def _leaves(content: Mapping[str, object], table: str = "") -> list[tuple[str, str, object]]:
    """Every (dotted table, key, value) below ``content``."""
    leaves: list[tuple[str, str, object]] = []
    for key, value in content.items():
        if isinstance(value, dict):
            leaves += _leaves(value, f"{table}.{key}" if table else key)
        else:
            leaves.append((table, key, value))
    return leaves


@lru_cache(maxsize=1)
def catalogue() -> Catalogue:
    """The installed words, read once. Without assets it is empty: every code is then shown as it is."""
    try:
        return load(assets_root())
    except Unusable as error:
        return Catalogue(troubles=(str(error),))


def explain(error: DistributorError) -> str:
    """What happened, where, and what to do, for the person in front of it. Never raises, never shows ``detail``."""
    return catalogue().say("error", error.code, error.facts)


def explain_finding(code: str, facts: Mapping[str, object], words: str = "") -> str:
    """A channel's or intake's finding in words. A code that the files don't know uses the channel's own ``words``."""
    if words and catalogue().template("finding", code) is None:
        return catalogue().fill(words, facts)
    return catalogue().say("finding", code, facts)


def reason(code: str, /, **facts: object) -> str:
    """Why a delivery stands where it stands, or what a channel's error code means."""
    return catalogue().say("reason", code, facts)


def word(table: str, key: str) -> str:
    """One word: ``word("state.delivery", "live")``, ``word("stage", "first")``. An unknown key is shown as it is."""
    return catalogue().word(table, key)
