"""The floors and fences of the design, held by reading the source. Each rule is also shown able to fail."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# From the ground up. A module imports only from floors below its own; inside web/ the modules know each other.
FLOORS = (
    {"errors"},
    {"clock", "text", "files", "hours", "logs"},
    {"vault"},
    {"channel", "counting", "settings", "messages"},
    {"http", "model"},
    {"migrations"},
    {"database"},
    {"store", "sandbox"},
    {"outlets"},
    {"desk", "dispatch", "tally", "board", "backup"},
    {"intake", "forward", "engine", "doctor"},
    {"app"},
    {"web", "testing"},
    {"demo"},  # serves the pages while it plays
    {"__main__"},
)
FLOOR = {module: floor for floor, modules in enumerate(FLOORS) for module in modules}
SCHEDULER_REACHES = FLOOR["engine"]  # scheduler.py implements the engine's seam and knows nothing above it

CHANNELS_MAY_USE = {"channel", "text", "files", "http", "errors"}
SQL_LIVES_IN = {"database", "store", "tally", "migrations", "backup"}
SQL_PACKAGES = {"sqlalchemy", "sqlmodel", "sqlite3", "aiosqlite", "asyncpg", "alembic"}
SQL_VERBS = {"select", "insert", "update", "delete", "exec_driver_sql"}
CATCHES_EVERYTHING = {"outlets", "dispatch"}  # loading a plug-in, calling a channel
TIME_LIVES_IN = {"distributor/clock.py", "scheduler.py"}
SLEEPS_BESIDES = {
    "distributor/testing.py": "its fake outlets play slow machines",
    "distributor/sandbox.py": "its platforms take their time to review",
}
SLEEPING = {"asyncio.sleep"}
TELLING_TIME = {
    "datetime.datetime.now", "datetime.datetime.utcnow", "datetime.datetime.today", "datetime.date.today",
    "time.time", "time.time_ns", "time.localtime", "time.gmtime", "time.ctime", "time.sleep", "asyncio.sleep",
}  # fmt: skip


class Module:
    """One source file: its place, its syntax tree, and every module or name that it imports, with the line."""

    def __init__(self, path: Path, root: Path) -> None:
        self.place = path.relative_to(root).as_posix()
        self.package, _, inside = self.place.removesuffix(".py").partition("/")
        self.name = inside.partition("/")[0]  # "web" for distributor/web/api.py, "" for scheduler.py
        self.tree = ast.parse(path.read_bytes(), self.place)
        self.imports = list(self._imports(path, root))
        self.aliases = dict(self._aliases())

    def _imports(self, path: Path, root: Path) -> Iterator[tuple[str, int]]:
        """Dotted names; ``from a import b`` gives ``a.b``, for ``b`` may be a module."""
        parents = path.relative_to(root).parent.parts
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((alias.name, node.lineno) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = [*parents[: len(parents) - node.level + 1]] if node.level else []
                prefix = ".".join([*base, *([node.module] if node.module else [])])
                yield from ((f"{prefix}.{alias.name}", node.lineno) for alias in node.names)

    def _aliases(self) -> Iterator[tuple[str, str]]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for each in node.names:
                    top = each.name.split(".")[0]
                    yield (each.asname, each.name) if each.asname else (top, top)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield from ((each.asname or each.name, f"{node.module}.{each.name}") for each in node.names)

    def full_name(self, node: ast.AST) -> str:
        """``datetime.datetime.now`` for what the code calls ``dt.now``; "" for what isn't a plain dotted name."""
        if isinstance(node, ast.Name):
            return self.aliases.get(node.id, node.id)
        if isinstance(node, ast.Attribute) and (owner := self.full_name(node.value)):
            return f"{owner}.{node.attr}"
        return ""


def modules(root: Path) -> list[Module]:
    """The product's own source, without generated migrations."""
    paths = [*root.glob("distributor/**/*.py"), *root.glob("channels/**/*.py"), *root.glob("scheduler.py")]
    return [Module(path, root) for path in sorted(paths) if "migrations/versions" not in path.as_posix()]


# ── the rules: each yields one line for every breach ────────────────────────────────────────────────────────
def imports_go_down(root: Path) -> Iterator[str]:
    for module in modules(root):
        if module.package == "channels" or module.name == "__init__":
            continue
        if module.place == "scheduler.py":
            own = SCHEDULER_REACHES + 0.5
        elif module.name in FLOOR:
            own = FLOOR[module.name]
        else:
            yield f"{module.place}: stands on no floor"
            continue
        for name, line in module.imports:
            package, _, rest = name.partition(".")
            target = rest.partition(".")[0]
            if package != "distributor" or target == "__version__":
                continue
            inside_web = module.name == target == "web"
            same_package = module.name == target == "migrations"
            if not (inside_web or same_package) and not FLOOR.get(target, len(FLOORS)) < own:
                yield f"{module.place}:{line}: imports {name}, which is not below it"


def only_main_imports_the_scheduler(root: Path) -> Iterator[str]:
    for module in modules(root):
        for name, line in module.imports:
            if name.split(".")[0] == "scheduler" and module.place != "distributor/__main__.py":
                yield f"{module.place}:{line}: imports the scheduler"


def channels_know_only_the_contract(root: Path) -> Iterator[str]:
    for module in modules(root):
        if module.package != "channels":
            continue
        for name, line in module.imports:
            package, _, rest = name.partition(".")
            target = rest.partition(".")[0]
            if (package == "distributor" and target not in CHANNELS_MAY_USE) or (
                package == "channels" and target != "transports") or package == "scheduler":  # fmt: skip
                yield f"{module.place}:{line}: imports {name}"


def the_core_names_no_channel(root: Path) -> Iterator[str]:
    for module in modules(root):
        if module.package == "channels":
            continue
        for name, line in module.imports:
            if name.split(".")[0] == "channels":
                yield f"{module.place}:{line}: imports {name}"
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("channels."):
                yield f"{module.place}:{node.lineno}: names {node.value!r}"


def the_channels_package_imports_nothing(root: Path) -> Iterator[str]:
    for module in modules(root):
        if module.place == "channels/__init__.py" and module.imports:
            yield f"{module.place}: imports {module.imports[0][0]}"


def sql_lives_in_few_places(root: Path) -> Iterator[str]:
    for module in modules(root):
        if module.package == "distributor" and module.name in SQL_LIVES_IN:
            continue
        for name, line in module.imports:
            verb = name.rpartition(".")[2]
            if name.split(".")[0] in SQL_PACKAGES and (module.name != "model" or verb in SQL_VERBS):
                yield f"{module.place}:{line}: imports {name}"


def everything_is_caught_in_two_places(root: Path) -> Iterator[str]:
    for module in modules(root):
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.ExceptHandler):
                continue
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            names = {ast.unparse(each) if each else "BaseException" for each in caught}
            cleans_up = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
            may = {"Exception"} if module.package == "distributor" and module.name in CATCHES_EVERYTHING else set()
            if not cleans_up and names & ({"Exception", "BaseException"} - may):
                yield f"{module.place}:{node.lineno}: catches everything and goes on"


def time_comes_from_the_clock(root: Path) -> Iterator[str]:
    for module in modules(root):
        if module.place in TIME_LIVES_IN:
            continue
        forbidden = TELLING_TIME - (SLEEPING if module.place in SLEEPS_BESIDES else set())
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Attribute | ast.Name) and module.full_name(node) in forbidden:
                yield f"{module.place}:{node.lineno}: uses {module.full_name(node)}"


def assets_hold_no_python(root: Path) -> Iterator[str]:
    for path in sorted(root.glob("assets/**/*.py")):
        yield f"{path.relative_to(root).as_posix()}: code among the assets"


Rule = Callable[[Path], Iterator[str]]
RULES: list[Rule] = [
    imports_go_down, only_main_imports_the_scheduler, channels_know_only_the_contract, the_core_names_no_channel,
    the_channels_package_imports_nothing, sql_lives_in_few_places, everything_is_caught_in_two_places,
    time_comes_from_the_clock, assets_hold_no_python,
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_source_keeps_the_rule(rule: Rule) -> None:
    assert list(rule(ROOT)) == []


BREACHES: list[tuple[Rule, str, str]] = [
    (imports_go_down, "distributor/text.py", "from distributor.files import Folder"),
    (imports_go_down, "distributor/store.py", "from distributor import desk"),
    (imports_go_down, "distributor/store.py", "from . import outlets"),
    (imports_go_down, "distributor/app.py", "def f():\n    import distributor.web.app"),
    (imports_go_down, "distributor/helpers.py", "x = 1"),
    (imports_go_down, "scheduler.py", "from distributor.app import make"),
    (only_main_imports_the_scheduler, "distributor/app.py", "import scheduler"),
    (only_main_imports_the_scheduler, "distributor/web/app.py", "from scheduler import Embedded"),
    (channels_know_only_the_contract, "channels/a.py", "from distributor.store import Store"),
    (channels_know_only_the_contract, "channels/a.py", "from distributor import clock"),
    (channels_know_only_the_contract, "channels/a.py", "from channels.b import B"),
    (channels_know_only_the_contract, "channels/transports/a.py", "import channels.b"),
    (the_core_names_no_channel, "distributor/app.py", "import channels.rss"),
    (the_core_names_no_channel, "distributor/app.py", "NAME = 'channels.rss'"),
    (the_channels_package_imports_nothing, "channels/__init__.py", "import json"),
    (sql_lives_in_few_places, "distributor/desk.py", "from sqlmodel import select"),
    (sql_lives_in_few_places, "distributor/web/api.py", "import sqlite3"),
    (sql_lives_in_few_places, "distributor/model.py", "from sqlalchemy import update"),
    (sql_lives_in_few_places, "channels/store.py", "import sqlite3"),
    (everything_is_caught_in_two_places, "distributor/desk.py", "try:\n    f()\nexcept Exception:\n    pass"),
    (everything_is_caught_in_two_places, "distributor/desk.py", "try:\n    f()\nexcept:\n    pass"),
    (everything_is_caught_in_two_places, "channels/a.py", "try:\n    f()\nexcept (OSError, Exception):\n    pass"),
    (everything_is_caught_in_two_places, "channels/outlets.py", "try:\n    f()\nexcept Exception:\n    pass"),
    (everything_is_caught_in_two_places, "distributor/outlets.py", "try:\n    f()\nexcept BaseException:\n    pass"),
    (time_comes_from_the_clock, "distributor/desk.py", "from datetime import datetime as d\nx = d.now()"),
    (time_comes_from_the_clock, "distributor/desk.py", "import datetime as dt\nx = dt.datetime.now"),
    (time_comes_from_the_clock, "channels/a.py", "import time\ntime.sleep(1)"),
    (time_comes_from_the_clock, "channels/a.py", "from asyncio import sleep\nsleep(1)"),
    (time_comes_from_the_clock, "distributor/testing.py", "import time\ntime.time()"),
    (assets_hold_no_python, "assets/templates/a.py", "x = 1"),
]


@pytest.mark.parametrize(("rule", "place", "source"), BREACHES, ids=lambda value: getattr(value, "__name__", None))
def test_a_breach_of_the_rule_is_found(rule: Rule, place: str, source: str, tmp_path: Path) -> None:
    target = tmp_path / place
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(source, encoding="utf-8")

    found = list(rule(tmp_path))

    assert len(found) == 1
    assert found[0].startswith(place)


KEPT: list[tuple[str, str]] = [
    ("distributor/app.py", "from distributor.engine import Engine\nfrom distributor.errors import Refused"),
    ("distributor/web/api.py", "from distributor.web.app import KEY\nfrom distributor.app import Distributor"),
    ("distributor/__main__.py", "import scheduler"),
    ("channels/a.py", "from distributor.channel import Channel\nfrom channels.transports.ftp import put\nimport PIL"),
    ("channels/__init__.py", '"""Channels."""'),
    ("distributor/store.py", "from sqlmodel import select"),
    ("distributor/model.py", "from sqlalchemy import Index, text"),
    ("distributor/files.py", "try:\n    f()\nexcept BaseException:\n    g()\n    raise"),
    ("distributor/dispatch.py", "try:\n    f()\nexcept Exception as error:\n    g(error)"),
    ("distributor/clock.py", "from datetime import datetime\nx = datetime.now()"),
    ("distributor/testing.py", "import asyncio\nasyncio.sleep(1)"),
]


@pytest.mark.parametrize(("place", "source"), KEPT)
def test_what_is_allowed_is_no_breach(place: str, source: str, tmp_path: Path) -> None:
    target = tmp_path / place
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(source, encoding="utf-8")

    assert [line for rule in RULES for line in rule(tmp_path)] == []
