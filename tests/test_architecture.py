"""Imports follow the data, and only four kinds of module know Dagster."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ORDER = ["contract", "lake", "intake", "consent", "quality", "identity", "privacy", "publication"]
DAGSTER_MODULES = {"asset.py", "checks.py", "partitions.py", "resources.py", "guard.py", "metadata.py"}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
    return found


def test_imports_follow_the_arrow():
    wrong = []
    for path in (ROOT / "assets").rglob("*.py"):
        stage = path.relative_to(ROOT / "assets").parts[0]
        for name in imports(path):
            if name.split(".")[0] == "pipelines":
                wrong.append(f"{path} imports {name}")
            part = name.split(".")[1] if name.startswith("assets.") else ""
            if stage in ORDER and part in ORDER and ORDER.index(part) > ORDER.index(stage):
                wrong.append(f"{path} imports {name}")
    assert wrong == []


def test_only_thin_modules_know_dagster():
    knowing = {p.name for p in (ROOT / "assets").rglob("*.py") if any(n.split(".")[0] == "dagster" for n in imports(p))}
    assert knowing <= DAGSTER_MODULES


def test_release_code_uses_no_banned_mechanism():
    names = {n for p in (ROOT / "assets").rglob("*.py") for n in imports(p) if n.startswith("diffprivlib")}
    assert names <= {
        "diffprivlib.mechanisms",
        "diffprivlib.mechanisms.GaussianDiscrete",
        "diffprivlib.mechanisms.Geometric",
    }


def test_no_python_file_lies_at_the_root():
    assert list(ROOT.glob("*.py")) == []


def test_every_duckdb_connection_is_the_sealed_one():
    sources = [p for room in ("assets", "pipelines") for p in (ROOT / room).rglob("*.py")]
    bare = [str(p) for p in sources if re.search(r"duckdb\s*\.\s*(connect|sql|query|execute)\b", p.read_text())]
    assert bare == [str(ROOT / "assets" / "lake" / "engine.py")]


def test_nothing_runs_a_shell_a_pickle_or_text_as_code():
    banned = {"pickle", "subprocess", "marshal", "shelve", "dill", "cloudpickle"}
    calls = {"eval", "exec", "compile", "__import__"}
    found = []
    for path in (p for room in ("assets", "pipelines") for p in (ROOT / room).rglob("*.py")):
        allowed = {"subprocess"} if path.name == "sql_box.py" else set()  # npm, by name and without a shell
        found += [f"{path} imports {n}" for n in imports(path) if n.split(".")[0] in banned - allowed]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                shell = any(k.arg == "shell" for k in node.keywords)
                if shell or name in calls or name in ("os.system", "os.popen"):
                    found.append(f"{path}:{node.lineno} {name}")
    assert found == []
