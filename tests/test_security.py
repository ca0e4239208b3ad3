"""What SECURITY.md promises of the source: nothing unpickles a file or runs what a file says."""

import ast
from pathlib import Path

import pytest

import lightning_xai

FORBIDDEN = {"eval", "exec", "compile", "__import__", "system", "popen"}
MODULES = {"pickle", "dill", "joblib", "marshal", "shelve", "subprocess", "cloudpickle"}


def unsafe(source):
    """The lines of a source that could run what a file says."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = [part.name for part in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [ast.unparse(node) for name in names if name.partition(".")[0] in MODULES]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            safely = any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in node.keywords)
            if (called in FORBIDDEN) or (called in ("torch.load", "load_from_checkpoint") and not safely):
                found.append(ast.unparse(node))
            if called in ("np.load", "numpy.load", "yaml.load"):
                found.append(ast.unparse(node))
    return found


def test_the_package_runs_nothing_that_a_file_says():
    sources = sorted(Path(lightning_xai.__file__).parent.rglob("*.py"))
    assert len(sources) > 100
    assert [(path.name, line) for path in sources for line in unsafe(path.read_text())] == []


@pytest.mark.parametrize(
    "line",
    ["import pickle", "from joblib import load", "torch.load(path)", "torch.load(path, weights_only=False)", "eval(x)"],
)
def test_what_does_is_found(line):
    assert unsafe(line) == [line]
