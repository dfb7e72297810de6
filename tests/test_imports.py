"""Who imports what: plain code stays free of Ray and MLflow, and importing does nothing."""

from __future__ import annotations

from pathlib import Path

from running import run_code

PACKAGE = Path(__file__).parent.parent / "scfegan_ray"
WITH_RAY = {
    "nodes",
    "data.prepare",
    "data.ray_feed",
    "benchmarks.data",
    "benchmarks.edit",
    "benchmarks.ray",
    "benchmarks.rows",
    "benchmarks.scale",
    "benchmarks.step",
    "training.feeding",
    "training.reporting",
    "training.worker",
    "training.launch",
    "training.stopping",
    "tuning.halving",
    "tuning.search",
    "benchmarks.feed",
    "evaluation.run",
    "promotion",
    "planning.plan",
    "serving.replicas",
}
WITH_MLFLOW = {
    "tracking", "registry", "served", "training.checks", "training.worker", "training.launch", "tuning.search",
    "serving.loading", "serving.editor", "serving.export", "evaluation.run", "card", "promotion", "importing",
    "benchmarks.ray", "serving.current", "serving.replay", "serving.api", "serving.server", "benchmarks.serving",
    "serving.static",
}  # fmt: skip
WITH_MATPLOTLIB = {  # through torchmetrics
    "evaluation.sets", "evaluation.summary", "evaluation.report",
}  # fmt: skip
MODULES = sorted(
    str(path.relative_to(PACKAGE).with_suffix("")).replace("/", ".")
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py"
)


def test_plain_modules_import_neither_ray_nor_mlflow_and_none_leaves_a_file(tmp_path: Path) -> None:
    plain = [name for name in MODULES if name not in WITH_RAY | WITH_MLFLOW | WITH_MATPLOTLIB]
    others = [name for name in MODULES if name not in plain and name != "served"]
    code = "import sys, importlib\n"
    code += f"for name in {plain!r}: importlib.import_module('scfegan_ray.' + name)\n"
    code += "print(sorted({'ray', 'mlflow', 'boto3', 'matplotlib'} & set(sys.modules)))\n"
    code += f"for name in {sorted(WITH_MATPLOTLIB)!r}: importlib.import_module('scfegan_ray.' + name)\n"
    code += "assert not {'ray', 'mlflow', 'boto3'} & set(sys.modules)\n"
    code += f"for name in {others!r}: importlib.import_module('scfegan_ray.' + name)"
    assert run_code(code, tmp_path) == "[]"
    assert list(tmp_path.iterdir()) == []


def test_command_line_needs_no_heavy_import(tmp_path: Path) -> None:
    code = "import sys; from scfegan_ray import cli; cli.parse('', cli.Arguments, ['--seed', '1'])\n"
    code += "print(sorted({'ray', 'mlflow', 'torch', 'cv2', 'pyarrow', 'jinja2'} & set(sys.modules)))"
    assert run_code(code, tmp_path) == "[]"
