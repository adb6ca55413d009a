"""The rules of the house that a machine can hold: import direction, sizes, safe files, quick start, declared needs."""

import ast
import configparser
import functools
import importlib
import importlib.metadata
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("probes", "saes", "geometry", "finetuning", "persona_geometry")  # each may import itself and those before it
HEAVY = ("accelerate", "numba", "pandas", "peft", "plotly", "sae_lens", "scipy", "sklearn", "tokenizers", "torch")
HEAVY += ("transformer_lens", "transformers", "umap")
LIBRARIES = {"numpy", "plotly", "sae_lens", "sklearn", "torch", "transformer_lens", "umap"}  # all do real work
UNSAFE_MODULES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "torch.load", "torch.save", "yaml.full_load", "yaml.load", "yaml.unsafe_load"}
UNSAFE_METHODS = {"read_pickle", "to_pickle"}
UNSAFE_KEYWORDS = {("allow_pickle", True), ("trust_remote_code", True), ("weights_only", False)}
MAX_FILE, MAX_FUNCTION = 300, 60


def package_files() -> list[Path]:
    return sorted(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))


def all_files() -> list[Path]:
    beside = ("tests", "examples", "benchmarks")
    return package_files() + sorted(path for folder in beside for path in (ROOT / folder).rglob("*.py"))


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every absolute import as (line, dotted module), those inside functions and `import_module("...")` included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            values = [a.value for a in node.args if isinstance(a, ast.Constant)]
            yield from ((node.lineno, value) for value in values if isinstance(value, str))


def upward_imports(tree: ast.Module, floor: str) -> list[tuple[int, str]]:
    above = FLOORS[FLOORS.index(floor) + 1 :]
    outside = (*above, "tests", "benchmarks", "examples")
    return [(line, name) for line, name in imports(tree) if name.split(".")[0] in outside]


def loads_weights_only(call: ast.Call) -> bool:
    """Whether `weights_only=True` is literally written in a call."""
    given = {k.arg: k.value for k in call.keywords}.get("weights_only")
    return isinstance(given, ast.Constant) and given.value is True


def unsafe(tree: ast.Module) -> list[tuple[int, str]]:
    """Reads and writes that can run code hidden in a file; `torch.load` cannot with `weights_only=True` beside it."""
    found = [(line, name) for line, name in imports(tree) if name.split(".")[0] in UNSAFE_MODULES]
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        keywords = {(k.arg, k.value.value) for k in call.keywords if isinstance(k.value, ast.Constant)}
        forbidden = UNSAFE_CALLS - ({"torch.load"} if loads_weights_only(call) else set())
        if name in forbidden or name.rpartition(".")[2] in UNSAFE_METHODS or keywords & UNSAFE_KEYWORDS:
            found.append((call.lineno, name))
    return found


def long_functions(tree: ast.Module) -> list[tuple[int, str]]:
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [(f.lineno, f.name) for f in functions if (f.end_lineno or f.lineno) - f.lineno + 1 > MAX_FUNCTION]


def calls(tree: ast.Module, wanted: str) -> list[int]:
    """Lines that call a function whose name matches `wanted` in full."""
    found = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return [node.lineno for node in found if re.fullmatch(wanted, ast.unparse(node.func))]


def test_all_floors_stand() -> None:
    assert [floor for floor in FLOORS if not (ROOT / floor / "__init__.py").is_file()] == []


@pytest.mark.parametrize("floor", FLOORS)
def test_imports_run_one_way(floor: str) -> None:
    offences = [
        f"{place(path, line)} imports {name}"
        for path in sorted((ROOT / floor).rglob("*.py"))
        for line, name in upward_imports(tree_of(path), floor)
    ]
    assert offences == []


def test_no_file_can_run_code() -> None:
    offences = [f"{place(p, line)} {name}" for p in package_files() for line, name in unsafe(tree_of(p))]
    assert offences == []


def test_sizes() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in all_files()}
    offences = [f"{p.relative_to(ROOT)} has {n} lines" for p, n in lengths.items() if n > MAX_FILE]
    offences += [f"{place(p, line)} {name} is long" for p in all_files() for line, name in long_functions(tree_of(p))]
    assert offences == []


def test_each_file_says_what_lives_there() -> None:
    assert [str(p.relative_to(ROOT)) for p in all_files() if not ast.get_docstring(tree_of(p))] == []


def test_hooks_live_in_one_place() -> None:
    home = ROOT / "probes" / "hooks.py"
    pattern = r".*\.register_(module_)?(forward|full_backward|backward)(_pre)?_hook"
    assert [place(p, n) for p in package_files() if p != home for n in calls(tree_of(p), pattern)] == []


def test_only_the_command_line_prints() -> None:
    mouth = ROOT / "persona_geometry" / "commands"
    quiet = (p for p in package_files() if mouth not in p.parents)
    assert [place(p, line) for p in quiet for line in calls(tree_of(p), "print")] == []


def test_no_packages_under_tests() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("floor", FLOORS)
def test_import_is_light(floor: str) -> None:
    loaded = run_python(f"import sys, {floor}; print(*sorted({set(HEAVY)!r} & set(sys.modules)))")
    assert loaded.split() == []


@pytest.mark.parametrize(
    ("code", "limit"),
    [
        pytest.param("import persona_geometry", 0.3, id="import"),
        pytest.param(
            "import sys; sys.argv = ['persona-geometry', '--help']; from persona_geometry.commands import main; main()",
            0.5,
            id="help",
        ),
    ],
)
def test_start_feels_instant(code: str, limit: float) -> None:
    resource = pytest.importorskip("resource", reason="CPU time of a child is read by a Unix call")

    def cpu_seconds() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    marks = [cpu_seconds()]
    for _ in range(3):  # the first writes the bytecode; the fastest is the least disturbed
        run_python(code)
        marks.append(cpu_seconds())
    assert min(b - a for a, b in itertools.pairwise(marks)) < limit


@pytest.mark.parametrize("floor", FLOORS)
def test_public_names_resolve(floor: str) -> None:
    package = importlib.import_module(floor)
    assert [name for name in package.__all__ if not hasattr(package, name)] == []
    assert set(package.__all__) <= set(dir(package))
    assert not hasattr(package, "no_such_name")


def requirements() -> dict[str, Requirement]:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    parsed = [Requirement(line) for block in lines for line in block.splitlines() if line]
    return {canonicalize_name(requirement.name): requirement for requirement in parsed}


def test_third_party_imports_are_declared() -> None:
    homes, declared = importlib.metadata.packages_distributions(), requirements()
    own = {*FLOORS, *sys.stdlib_module_names}
    offences = set()
    for path in package_files():
        for line, name in imports(tree_of(path)):
            top = name.split(".")[0]
            if top not in own and not any(canonicalize_name(home) in declared for home in homes.get(top, [top])):
                offences.add(f"{place(path, line)} imports {name}, which setup.cfg does not ask for")
    assert sorted(offences) == []


def test_each_library_does_work() -> None:
    used = {name.split(".")[0] for path in package_files() for _, name in imports(tree_of(path))}
    assert LIBRARIES - used == set()


def test_constraints_satisfy_the_requirements() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    unpinned = {"bitsandbytes", "inspect-ai"}  # extras that neither the tests nor the demo need
    checked = {name: need for name, need in requirements().items() if name not in unpinned}
    assert checked.keys() - pins.keys() == set()
    assert [str(need) for name, need in checked.items() if not need.specifier.contains(pins[name])] == []
    assert [f"{name}=={pin}" for name, pin in pins.items() if "+" in pin] == []  # a local build is no registry's


@pytest.mark.parametrize(
    ("check", "bad", "good"),
    [
        (lambda t: upward_imports(t, "saes"), "def f():\n    import geometry.sets", "from probes import load_model"),
        (lambda t: upward_imports(t, "saes"), "importlib.import_module('finetuning.loop')", "from . import geometry"),
        (unsafe, "from pickle import loads", "import json"),
        (unsafe, "x = torch.load(path)", "x = torch.load(path, weights_only=True)"),
        (unsafe, "x = torch.load(path, weights_only=safe)", "x = safetensors.torch.load_file(path)"),
        (unsafe, "x = torch.load(path, weights_only=1)", "x = torch.load(path, mmap=True, weights_only=True)"),
        (unsafe, "numpy.load(path, allow_pickle=True)", "numpy.load(path, allow_pickle=False)"),
        (unsafe, "frame.to_pickle(path)", "frame.to_parquet(path)"),
        (unsafe, "yaml.load(text)", "yaml.safe_load(text)"),
        (unsafe, "eval(text)", "model.eval()"),
        (long_functions, "def f():\n" + " x = 1\n" * MAX_FUNCTION, "def f():\n" + " x = 1\n" * (MAX_FUNCTION - 1)),
    ],
)
def test_the_checks_themselves(check, bad: str, good: str) -> None:
    assert check(ast.parse(bad)) and not check(ast.parse(good))
