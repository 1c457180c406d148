"""The structure of the package: import order, no cycles, library boundaries, module lengths."""

import ast
import os
import subprocess
import sys
import sysconfig
from importlib.metadata import files
from pathlib import Path

import pytest
from helpers import ROOT

PACKAGE = ROOT / "pneumonia_hf"
# Each may import those before it, never those after it.
ORDER = (
    "errors reasons labels files compat memory hub cli distributed imaging data statistics "
    "reporting models inference audit evaluation training search demo publish commands __main__"
).split()
# The only modules or packages that may import a library.
BOUNDARIES = {
    "gradio": ["demo", "compat.gradio"],
    "gradio_client": ["demo.check"],
    "captum": ["inference.attribution_methods"],
    "huggingface_hub": ["hub", "data.hub_source", "models.model_card"],
    "evaluate": ["evaluation.hf_metric"],
    "pydicom": ["imaging.dicom", "imaging.dicom_display"],
    "gdcm": ["imaging.dicom"],
    "kornia": ["imaging.transforms"],
    "cleanlab": ["audit.label_errors"],
    "optuna": ["search"],
    "onnx": ["inference.backends"],
    "onnxruntime": ["inference.backends"],
    "openvino": ["inference.backends"],
    "imagehash": ["data.image_stats"],
    "medmnist": ["data.medmnist_source"],
    # Slower than our own solver, and without a warning where only ties overlap: for tests alone.
    "statsmodels": [],
}
MOST_LINES = 400
# A module with functions or classes and more lines than these has a test file of its own name.
FEW_LINES = 60
# Those without, and why.
TESTED_ELSEWHERE = {
    "data.issues": "by each source that finds one: tests/data/",
    "data.splits": "through load_splits: tests/data/test_load.py",
    "data.table": "by each source that fills one: tests/data/",
    "demo.serve": "as app.py: tests/demo/test_app.py",
    "inference.batch": "through the command: tests/commands/test_predict.py",
    "inference.read_ahead": "through the predictor: tests/inference/test_predictor.py",
    "reasons": "by all that doubt an image, such as tests/imaging/test_xray.py",
    "training.callback": "through training: tests/training/test_interruption.py",
    "training.counterfactuals": "through training: tests/training/test_trainer.py",
    "training.curves": "through training: tests/training/test_train.py",
    "training.finalize": "through training: tests/training/test_train.py",
}


def list_modules() -> dict[str, Path]:
    """Return the path of each module by its dotted name within the package."""
    paths = sorted(PACKAGE.rglob("*.py"))
    names = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in paths}
    return {name: path for name, path in names.items() if not name.endswith("__init__")}


def list_imports(path: Path) -> set[str]:
    """Return all that a file imports, also inside functions, as dotted names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def graph_imports() -> dict[str, set[str]]:
    """Return the modules of the package that each module imports."""
    modules = list_modules()
    graph = {}
    for name, path in modules.items():
        inner = [
            one.removeprefix("pneumonia_hf.")
            for one in list_imports(path)
            if one.startswith("pneumonia_hf.")
        ]
        found = {one if one in modules else one.rpartition(".")[0] for one in inner}
        graph[name] = {one for one in found if one in modules}
    return graph


def test_packages_import_only_those_above_them():
    graph = graph_imports()
    assert sum(map(len, graph.values())) > 100
    ranks = {name: ORDER.index(name.split(".")[0]) for name in graph}
    wrong = {(one, other) for one in graph for other in graph[one] if ranks[other] > ranks[one]}
    assert not wrong


def test_no_modules_import_each_other_in_a_cycle():
    graph = {name: set(imported) for name, imported in graph_imports().items()}
    # What imports nothing that is left cannot be in a cycle.
    while free := {name for name, imported in graph.items() if not imported & graph.keys()}:
        graph = {name: imported for name, imported in graph.items() if name not in free}
    assert not graph


def list_private_uses(path: Path) -> list[str]:
    """Return the private names of other objects and of base classes that a module uses."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Attribute) or not node.attr.startswith("_"):
            continue
        if node.attr.startswith("__") or node.attr in ("_replace", "_asdict"):  # of named tuples
            continue
        owner = node.value
        is_base = isinstance(owner, ast.Call) and getattr(owner.func, "id", "") == "super"
        if is_base or not (isinstance(owner, ast.Name) and owner.id in ("self", "cls")):
            found.append(f"{path.name}:{node.lineno} {ast.unparse(node)}")
    return found


def test_private_parts_of_libraries_are_used_in_compat_alone():
    found = [
        use
        for name, path in list_modules().items()
        if not name.startswith("compat.")
        for use in list_private_uses(path)
    ]
    assert not found
    assert list_private_uses(PACKAGE / "compat" / "transformers.py")


def test_libraries_are_imported_only_where_they_belong():
    for name, path in list_modules().items():
        libraries = {one.split(".")[0] for one in list_imports(path)}
        for library in libraries & BOUNDARIES.keys():
            allowed = BOUNDARIES[library]
            assert any(name == one or name.startswith(f"{one}.") for one in allowed), (
                f"{name} imports {library}, which only {allowed} may"
            )


def test_statistics_know_arrays_only():
    """No image, no model, no file: numpy at import, scipy and scikit-learn inside functions."""
    modules = {name: path for name, path in list_modules().items() if name.startswith("statistics")}
    assert len(modules) > 5
    for name, path in modules.items():
        for imported in list_imports(path):
            library = imported.split(".")[0]
            assert (
                library in sys.stdlib_module_names - {"pathlib", "os", "io", "json", "csv"}
                or library in ("numpy", "scipy", "sklearn")
                or imported.startswith(("pneumonia_hf.statistics.", "pneumonia_hf.errors."))
            ), f"{name} imports {imported}"
    code = (
        "import sys, pneumonia_hf.statistics.calibration, pneumonia_hf.statistics.comparison, "
        "pneumonia_hf.statistics.selective\n"
        "print({'scipy', 'sklearn', 'torch', 'PIL'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "set()", done.stderr


def test_modules_are_short():
    for name, path in list_modules().items():
        assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES, name


def has_test_file(name: str) -> bool:
    """Return whether tests/ has the file of a module's tests."""
    *folders, module = name.split(".")
    return Path(ROOT, "tests", *folders, f"test_{module}.py").exists()


def has_logic(path: Path) -> bool:
    """Return whether a module defines functions or classes in more than a few lines."""
    text = path.read_text(encoding="utf-8")
    kinds = ast.FunctionDef | ast.ClassDef
    is_long = len(text.splitlines()) > FEW_LINES
    return is_long and any(isinstance(node, kinds) for node in ast.parse(text).body)


def test_each_module_with_logic_has_a_test_file_of_its_name():
    lacking = {
        name for name, path in list_modules().items() if not has_test_file(name) and has_logic(path)
    }
    assert lacking == set(TESTED_ELSEWHERE)


def test_public_names_exist_and_importing_the_package_imports_nothing_heavy():
    import pneumonia_hf

    for name in pneumonia_hf.__all__:
        assert getattr(pneumonia_hf, name) is not None
    code = "import sys, pneumonia_hf; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.slow
def test_app_needs_no_package_of_training(tmp_path):
    """In an environment without what requirements-train.txt adds, the app imports and predicts."""
    lines = (ROOT / "requirements-train.txt").read_text().splitlines()
    packages = [line.split("==")[0] for line in lines if line and not line.startswith("#")]
    hidden = {file.parts[0] for name in packages for file in files(name)}
    assert {"kornia", "optuna", "imagehash"} <= {name.lower() for name in hidden}
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if path.name not in hidden and path.suffix != ".pth":
            (tmp_path / path.name).symlink_to(path)
    done = subprocess.run(
        [sys.executable, "-S", "-c", SERVE],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert "(256, 256)" in done.stdout


SERVE = """
import app
from PIL import Image
from pneumonia_hf import Predictor, attribute, build_demo
from pneumonia_hf.models.model_folder import DEFAULT_MODEL
predictor = Predictor.from_pretrained(DEFAULT_MODEL, device="cpu")
image = Image.linear_gradient("L")
print(predictor.predict(image).label, attribute(predictor, image).values.shape)
build_demo(predictor)
"""
