"""What mypyc makes of a source may be something else than Python does: these shapes stay out of the compiled modules.

Each of them was compiled with mypy 2.4.1 and run beside the interpreter; each passes mypy, compiles without a word,
and then differs as its test says. What the compiler refuses by itself (`break` in `try`/`finally`, async generators,
`del` of a name that is read later, an int where a float attribute is declared) needs no test here.

Differences that do no harm here, so not looked for: a float parameter turns an int into a float, an int parameter turns
a bool or an `IntEnum` into a plain int, tuples and floats have no identity, `raise ... from` sets no cause (the context
is set), a compiled coroutine that is never awaited warns nobody.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from functools import cache

import pytest

from tests.support.compiled import ROOT, listed

Function = ast.FunctionDef | ast.AsyncFunctionDef
_LAZY = {"islice", "takewhile", "dropwhile", "chain", "zip", "map", "filter", "iter", "enumerate", "put", "append"}
_COMPARISONS = {"__eq__", "__lt__", "__le__", "__gt__", "__ge__"}


@cache
def trees() -> tuple[tuple[str, ast.Module], ...]:
    return tuple((name, ast.parse((ROOT / name).read_text())) for name in listed())


def own_nodes(function: Function) -> Iterator[ast.AST]:
    """What stands in a function itself, without the functions and lambdas inside it."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, Function | ast.Lambda | ast.ClassDef):
            waiting.extend(ast.iter_child_nodes(node))


def bound_in(nodes: Sequence[ast.AST]) -> set[str]:
    found = (one for node in nodes for one in ast.walk(node) if isinstance(one, ast.Name))
    return {one.id for one in found if isinstance(one.ctx, ast.Store)}


def functions(tree: ast.Module) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


# --- the traps: each gives (line, what stands there) --------------------------------------------


def handlers_of_one_name(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for function in functions(tree):
        first: dict[str, str] = {}
        for node in sorted(
            (one for one in own_nodes(function) if isinstance(one, ast.ExceptHandler)), key=lambda one: one.lineno
        ):
            if node.name is not None and node.type is not None:
                caught = ast.unparse(node.type)
                if first.setdefault(node.name, caught) != caught:
                    yield node.lineno, f"except {caught} as {node.name}, which is of {first[node.name]} above"


def iterables_bound_anew(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for function in functions(tree):
        for node in own_nodes(function):
            if isinstance(node, ast.For):
                for name in sorted(_read_each_turn(node.iter) & bound_in([*node.body, node.target])):
                    yield node.lineno, f"for ... in {ast.unparse(node.iter)}, and {name} is bound anew in the loop"


def _read_each_turn(iterated: ast.expr) -> set[str]:
    """Names that mypyc's own loops go back to: of what is iterated over, and of the end of a range."""
    if isinstance(iterated, ast.Call):
        called = ast.unparse(iterated.func)
        if called in {"enumerate", "zip", "reversed", "range"}:
            return {one.id for one in iterated.args if isinstance(one, ast.Name)}
        if isinstance(iterated.func, ast.Attribute) and iterated.func.attr in {"items", "keys", "values"}:
            iterated = iterated.func.value
    return {iterated.id} if isinstance(iterated, ast.Name) else set()


def waits_with_an_exception(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for function in functions(tree):
        for node in own_nodes(function):
            if isinstance(node, ast.AsyncWith):
                yield node.lineno, f"its end may wait: {ast.unparse(node.items[0])}"
            blocks = node.body if isinstance(node, ast.ExceptHandler) else getattr(node, "finalbody", [])
            for one in (inner for statement in blocks for inner in ast.walk(statement)):
                if isinstance(one, ast.Await | ast.AsyncFor | ast.Yield | ast.YieldFrom):
                    yield one.lineno, f"it waits in an except or finally block: {ast.unparse(one)}"


def results_of_gather(tree: ast.Module) -> Iterator[tuple[int, str]]:
    awaited = {
        node.value.value for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Await)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("gather") and node not in awaited:
            yield from () if has_star(node) else [(node.lineno, ast.unparse(node))]


def has_star(call: ast.Call) -> bool:
    return any(isinstance(one, ast.Starred) for one in call.args)


def lazy_generators(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        for one in _not_taken_whole(node):
            if isinstance(one, ast.GeneratorExp):
                yield one.lineno, ast.unparse(one)


def _not_taken_whole(node: ast.AST) -> list[ast.expr | None]:
    match node:
        case ast.Call():
            return list(node.args) if ast.unparse(node.func).rpartition(".")[2] in _LAZY else []
        case ast.Assign() if not isinstance(node.targets[0], ast.Name):
            return []  # unpacked
        case ast.For() | ast.comprehension():
            return [node.iter]
        case ast.Assign() | ast.AnnAssign() | ast.Return() | ast.YieldFrom():
            return [node.value]
        case _:
            return []


def yields_under_care(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for function in functions(tree):
        for node in own_nodes(function):
            has_end = (isinstance(node, ast.Try) and node.finalbody) or isinstance(node, ast.With)
            if has_end and any(isinstance(one, ast.Yield | ast.YieldFrom) for one in ast.walk(node)):
                yield node.lineno, f"{function.name} yields in a try/finally or with block"


def weak_slots(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value == "__weakref__":
            yield node.lineno, "__weakref__"


def compared_without_hash(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            defined = {one.name for one in node.body if isinstance(one, Function)}
            if defined & _COMPARISONS and "__hash__" not in defined:
                yield node.lineno, f"class {node.name} compares and has no __hash__"


TRAPS = {
    "`except A as e` and `except B as e` in one function are one variable of A's type: B raises TypeError": (
        handlers_of_one_name,
        "give each class a name of its own (mypyc issue 620)",
    ),
    "the name of a list, tuple, dict or end of a range is read again in each turn of the loop": (
        iterables_bound_anew,
        "name what is bound in the loop otherwise: a list ends early, a range never ends, a tuple crashes the process",
    ),
    "who waits while an exception is under way gets another task's back: `raise` and `finally` raise that one": (
        waits_with_an_exception,
        "note what happened, leave the block, and wait then; or keep the coroutine in a module that is not compiled",
    ),
    "`a, b = await asyncio.gather(x, y)` raises TypeError: mypy's stubs say tuple, it is a list": (
        results_of_gather,
        "hand in a list (`*`), or await one after the other",
    ),
    "a generator expression is a list, made at once": (lazy_generators, "write the loop, or a generator function"),
    "a generator that is left early never runs its `finally`": (yields_under_care, "let who asks do the cleaning up"),
    "`__weakref__` in the slots of a compiled class is no help: it cannot be referred to weakly": (
        weak_slots,
        "keep such a class in a module that is not compiled",
    ),
    "a class with comparisons and no `__hash__` cannot be hashed at all": (compared_without_hash, "define both"),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_no_compiled_module_steps_into_a_trap(trap: str) -> None:
    find, instead = TRAPS[trap]
    found = [f"{name}:{line}: {what}" for name, tree in trees() for line, what in find(tree)]
    assert found == [], f"compiled, {trap}. Instead: {instead}"
