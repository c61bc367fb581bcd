"""The house rules that a program can check: sizes, who may import whom, and words that have no place here."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("bench", "baselines", "ptp", "tests")
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
# The engine from the ground up: a module imports its own layer and those before it, and nothing else of ours.
ENGINE = (
    {"errors", "config", "product", "mapped"},
    {"tree", "sampling", "blur", "kernels", "law_kernels", "many_kernels"},
    {"noise", "cache", "graphs", "timing"},
    {"model", "verify"},
    {"forward", "fused", "many", "sequences"},
    {"loop"},
)
LAYER = {f"bench.{name}": level for level, names in enumerate(ENGINE) for name in names}
CHAIN = ("bench.record", "bench.stats", "bench.report", "bench.run")  # none imports a later one, by any way


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in SOURCES if path.parent.name != "tests"}


@cache
def parsed(path):
    return ast.parse(path.read_text())


@cache
def imports(name, lazy=True):
    """Our modules that a module imports; without the `lazy` ones, only those it needs to be imported itself."""
    tree = parsed(MODULES[name])
    found = set()
    for node in ast.walk(tree) if lazy else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inside if inside <= MODULES.keys() else {node.module, *inside}
    return frozenset(found & MODULES.keys()) - {name}


def reach(name):
    """Everything that a module imports, by any way."""
    found, front = set(), {name}
    while front:
        found |= front
        front = {other for module in front for other in imports(module)} - found
    return found - {name}


def functions():
    for path in SOURCES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node


def is_kernel(node):
    """A device program: its arguments are pointers, strides and constants, and cannot be packed into an object."""
    return any("jit" in ast.unparse(decorator) for decorator in node.decorator_list)


def count_arguments(node):
    a = node.args
    names = [arg.arg for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg) if arg]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def test_files_are_short():
    assert len(SOURCES) > 60
    assert not {str(p.relative_to(ROOT)) for p in SOURCES if len(p.read_text().splitlines()) > 350}


def test_functions_are_short():
    lengths = {(path.stem, node.name, node.lineno): node.end_lineno - node.lineno + 1 for path, node in functions()}
    assert not {where: length for where, length in lengths.items() if length > 60}
    assert sum(length < 30 for length in lengths.values()) >= 0.9 * len(lengths) > 500


def test_functions_take_at_most_six_arguments():
    many = [(path.stem, node.name) for path, node in functions() if count_arguments(node) > 6 and not is_kernel(node)]
    assert not many


def test_the_counting_counts():
    code = "def f(self, a, /, b, *c, d=1, **e): pass\n@triton.jit\ndef g(a, b): pass"
    f, g = ast.parse(code).body
    assert (count_arguments(f), is_kernel(f), count_arguments(g), is_kernel(g)) == (5, False, 2, True)


def test_the_engine_is_built_in_layers():
    for name in LAYER.keys() & MODULES.keys():
        assert not {other for other in imports(name) if LAYER.get(other, 99) > LAYER[name]}, name
    core = {"tree", "sampling", "noise", "verify", "model", "cache", "forward", "sequences", "loop"}
    assert {f"bench.{name}" for name in core} <= MODULES.keys()


def test_no_output_module_reaches_back():
    for position, name in enumerate(CHAIN):
        assert not reach(name) & set(CHAIN[position + 1 :]), name
    assert set(CHAIN) - {"bench.run"} <= reach("bench.run")
    for name in CHAIN[:3]:
        assert not reach(name) & {module for module, level in LAYER.items() if level}, f"{name} reaches the engine"


def test_only_the_registry_imports_the_other_rooms():
    for name in MODULES:
        rooms = {other.split(".")[0] for other in imports(name)}
        if name.startswith("bench") and name != "bench.methods":
            assert rooms <= {"bench"}, name
        if name.startswith("ptp"):
            assert "baselines" not in rooms, name
    assert "baselines" in {other.split(".")[0] for other in imports("bench.methods")}


def test_no_module_imports_itself_in_a_circle():
    """Imports inside functions do not count: they are how a module finds its CUDA twin."""
    done: set[str] = set()

    def visit(name, above):
        assert name not in above, " -> ".join([*above, name])
        if name not in done:
            for other in imports(name, lazy=False):
                visit(other, [*above, name])
            done.add(name)

    for name in MODULES:
        visit(name, [])


BLOCKED = """
import importlib, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError("torch is blocked")
sys.meta_path.insert(0, Block())
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def run_without_torch(*modules):
    return subprocess.run([sys.executable, "-c", BLOCKED, *modules], cwd=ROOT, capture_output=True, text=True)


def test_stats_and_report_need_no_torch():
    """They and all that they import, the imports inside functions included."""
    modules = {"bench.stats", "bench.report"} | reach("bench.stats") | reach("bench.report")
    outcome = run_without_torch(*sorted(modules))
    assert outcome.returncode == 0, outcome.stderr
    assert "torch is blocked" in run_without_torch("bench.tree").stderr


def tracked():
    """Tracked text files. Outside a repository there are none to look at."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git repository")
    return [ROOT / name for name in listing.stdout.split("\0") if (ROOT / name).is_file()]


# Written in pieces, so that this file does not hold what it forbids. The made-up `alice` lives in a test.
HOSTS = "|".join([r"py" + r"pi\.org", "python" + "hosted", "npm" + r"js\.(org|com)", "hugging" + r"face\.co"])
PATHS = r"(?<![\w.~}])/(" + "|".join(["work", "root", "tmp", "mnt", "Users", "private"]) + r")/|/ho" + "me/(?!alice)"


@pytest.mark.parametrize(("what", "bad"), [("a registry's host", "https://py" + "pi.org/simple"),
                                           ("an absolute path", "open('/wo" + "rk/x')")])
def test_no_file_names_a_registry_or_a_place_on_a_machine(what, bad):
    pattern = re.compile(HOSTS if "host" in what else PATHS)
    assert pattern.search(bad)
    found = [(str(path.relative_to(ROOT)), match.group())
             for path in tracked() for match in pattern.finditer(path.read_text(errors="ignore"))]
    assert not found, what
