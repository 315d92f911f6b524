"""The places where a process can die: every await of a module, found in its source, and the gates put around them.

The product has no hooks. A child process that is to be killed imports the module through `Gated`, which rewrites its
syntax tree: the same code, with a report to the parent before and after each await. The list itself is made by
`awaits`, a plain walk over the untouched source, so that what the rewriting might miss is missed by the hits only.
"""

import ast
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, NoReturn

GATE = "__kill_gate__"


# ── the list ────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True, order=True)
class Point:
    """One await: where it stands and what kind it is."""

    line: int
    column: int
    kind: str  # await, async with, async for
    qualname: str
    text: str = field(compare=False, default="")  # its first words, for the printed list

    def __str__(self) -> str:
        return f"{self.qualname}:{self.line}:{self.column}:{self.kind}"

    @property
    def edges(self) -> tuple[str, ...]:
        """The moments of one passage at which a process can be stopped."""
        match self.kind:
            case "async with":
                return ("before enter", "after enter", "before exit", "after exit")
            case _:
                return ("before", "after")


def awaits(source: str) -> list[Point]:
    """Every ``await``, ``async with`` item and ``async for`` (comprehensions included), in the order of the source."""
    found: list[Point] = []

    def walk(node: ast.AST, path: tuple[str, ...]) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            path = (*path, node.name)
        for place, kind in places(node):
            text = " ".join(ast.unparse(place).split())
            found.append(Point(place.lineno, place.col_offset, kind, ".".join(path), text))
        for child in ast.iter_child_nodes(node):
            walk(child, path)

    walk(ast.parse(source), ())
    return sorted(found)


def places(node: ast.AST) -> list[tuple[ast.expr, str]]:
    """The expressions by which a node is named as a point, with the kind of each."""
    match node:
        case ast.Await():
            return [(node, "await")]
        case ast.AsyncWith():
            return [(item.context_expr, "async with") for item in node.items]
        case ast.AsyncFor():
            return [(node.iter, "async for")]
        case ast.comprehension(is_async=1):
            return [(node.iter, "async for")]
    return []


# ── the gates ───────────────────────────────────────────────────────────────────────────────────────────────
class _Rewrite(ast.NodeTransformer):
    """Puts a gate around each point; nothing else changes."""

    def __init__(self) -> None:
        self._path: list[str] = []

    def _named(self, node: Any) -> Any:
        self._path.append(node.name)
        self.generic_visit(node)
        self._path.pop()
        return node

    visit_ClassDef = visit_FunctionDef = visit_AsyncFunctionDef = _named  # noqa: N815  # names that ast calls

    def _gate(self, method: str, place: ast.expr, kind: str, *more: ast.expr) -> ast.expr:
        point = str(Point(place.lineno, place.col_offset, kind, ".".join(self._path)))
        gate = ast.Attribute(ast.Name(GATE, ast.Load()), method, ast.Load())
        return ast.copy_location(ast.Call(gate, [ast.Constant(point), *more], []), place)

    def visit_Await(self, node: ast.Await) -> ast.expr:
        before = self._gate("at", node, "await", ast.Constant("before"))
        after = self._gate("at", node, "await", ast.Constant("after"))
        self.generic_visit(node)
        passed = ast.Tuple([before, node, after], ast.Load())
        return ast.copy_location(ast.Subscript(passed, ast.Constant(1), ast.Load()), node)

    def visit_AsyncWith(self, node: ast.AsyncWith) -> ast.AsyncWith:
        found = places(node)
        self.generic_visit(node)
        for item, (place, kind) in zip(node.items, found, strict=True):
            item.context_expr = self._gate("around", place, kind, item.context_expr)
        return node

    def visit_AsyncFor(self, node: ast.AsyncFor) -> ast.AsyncFor:
        return self._looped(node)

    def visit_comprehension(self, node: ast.comprehension) -> ast.comprehension:
        return self._looped(node)

    def _looped(self, node: Any) -> Any:
        found = places(node)
        self.generic_visit(node)
        for place, kind in found:
            node.iter = self._gate("each", place, kind, node.iter)
        return node


@dataclass
class Gate:
    """What the rewritten module calls. ``report`` tells the parent; at ``target`` the process waits for its death.

    ``target``: the point, the edge and which passage of the two (from 1); None: run through.
    """

    report: Callable[[str], None] = lambda line: None
    target: tuple[str, str, int] | None = None
    tells_all: bool = False
    passed: dict[tuple[str, str], int] = field(default_factory=dict)

    def at(self, point: str, edge: str) -> None:
        nth = self.passed[point, edge] = self.passed.get((point, edge), 0) + 1
        if self.tells_all:
            self.report(f"hit {point}|{edge}|{nth}")
        if self.target == (point, edge, nth):
            self.report(f"reached {point}|{edge}|{nth}")
            wait_for_death()

    def around(self, point: str, inner: AbstractAsyncContextManager[Any]) -> "_Around":
        return _Around(self, point, inner)

    async def each(self, point: str, items: Any) -> AsyncIterator[Any]:
        iterator = aiter(items)
        while True:
            self.at(point, "before")
            try:
                item = await anext(iterator)
            except StopAsyncIteration:
                self.at(point, "after")
                return
            self.at(point, "after")
            yield item


def wait_for_death() -> NoReturn:
    """Stand still, the whole process, until somebody outside kills it."""
    nothing, _kept_open = os.pipe()
    while True:
        os.read(nothing, 1)  # nobody ever writes


class _Around:
    def __init__(self, gate: Gate, point: str, inner: AbstractAsyncContextManager[Any]) -> None:
        self._gate, self._point, self._inner = gate, point, inner

    async def __aenter__(self) -> Any:
        self._gate.at(self._point, "before enter")
        entered = await self._inner.__aenter__()
        self._gate.at(self._point, "after enter")
        return entered

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._gate.at(self._point, "before exit")
        swallowed = await self._inner.__aexit__(kind, error, trace)
        self._gate.at(self._point, "after exit")
        return swallowed


class Gated(importlib.machinery.SourceFileLoader):
    """Loads one module with gates, from its source each time: a cached bytecode would have none."""

    gate: Gate

    def get_code(self, fullname: str) -> Any:
        path = self.get_filename(fullname)
        tree = ast.fix_missing_locations(_Rewrite().visit(ast.parse(self.get_data(path), path)))
        return compile(tree, path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        setattr(module, GATE, self.gate)
        super().exec_module(module)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, name: str, gate: Gate) -> None:
        self._name, self._gate = name, gate

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if fullname != self._name:
            return None
        found = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert found is not None
        assert found.origin is not None
        loader = Gated(fullname, found.origin)
        loader.gate = self._gate
        return importlib.util.spec_from_file_location(fullname, found.origin, loader=loader)


def gate_module(name: str) -> Gate:
    """From now on ``name`` is imported with gates; it must not have been imported before."""
    assert name not in sys.modules, f"{name} was imported too early"
    gate = Gate()
    sys.meta_path.insert(0, _Finder(name, gate))
    return gate


def source_of(name: str) -> str:
    """The source of a module, found without importing it."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")
