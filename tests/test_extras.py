"""gmlib without its extras: what still works, and one sentence that names the extra for the rest."""

import json
import re
import subprocess
import sys

import pytest

# Modules of the extras and of the report. `import gmlib` loads none of them.
OPTIONAL = ("scipy", "pandas", "torchvision", "PIL", "matplotlib", "sklearn", "filelock")

# call: (module, extra)
CALLS = {
    "gm.load_data('digits')": ("sklearn", "data"),
    "gm.load_data('MNIST')": ("torchvision", "data"),
    "gm.load_data('SVHN')": ("scipy", "data"),
    "gm.load_data('imagefolder:.')": ("PIL", "data"),
    "S.show('a.png')": ("PIL", "data"),
    "S.to_folder('png')": ("PIL", "data"),
    "gm.reach(S, [0.1], n_starts=1, progress=False)": ("pandas", "analysis"),
    "gm.Evaluation((70.0, 71.0), 'convnet', 0).ci95": ("scipy", "analysis"),
    "__import__('gmlib.analysis')": ("scipy", "analysis"),
}

WITHOUT_EXTRAS = f"""
import json, sys

class Finder:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *rest):
        hidden = name.partition(".")[0] in {OPTIONAL}
        return None if hidden else self.finder.find_spec(name, *rest)

sys.meta_path[:] = map(Finder, sys.meta_path)
import numpy as np
import torch
import gmlib as gm

torch.set_num_threads(1)
x = np.random.default_rng(0).random((12, 8, 8), dtype=np.float32)
y = np.arange(12) % 2
data = gm.Data.from_arrays("mine", x, y, x, y)
recipe = gm.Recipe(dataset="mine", ipc=1, width=4, depth=2, outer_loops=2, batch_real=4)
gm.condense(data, recipe, progress=False).save("set.safetensors")
S = gm.SyntheticSet.load("set.safetensors")
shipped = gm.load_condensed("MNIST", ipc=1)
found = {{"shipped": shipped.ipc, "score": str(gm.evaluate(S, data, n_networks=2, epochs=2, progress=False))}}
for call in {list(CALLS)}:
    try:
        eval(call)
    except ImportError as error:
        found[call] = str(error)
print(json.dumps(found))
"""


def run(code, folder="."):
    """What a new process prints when it runs this code."""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


@pytest.fixture(scope="module")
def without_extras(tmp_path_factory):
    folder = tmp_path_factory.mktemp("without-extras")
    (folder / "ant").mkdir()
    return run(WITHOUT_EXTRAS, folder)


def test_condensing_storing_and_evaluating_need_no_extra(without_extras):
    assert re.fullmatch(r"\d+\.\d±\d+\.\d % \(n = 2\)", without_extras["score"])
    assert without_extras["shipped"] == 1


@pytest.mark.parametrize("call", CALLS)
def test_a_missing_extra_is_named_in_one_sentence(call, without_extras):
    module, extra = CALLS[call]
    message = without_extras[call]
    assert module in message and f"gmlib[{extra}]" in message and ". " not in message


def test_importing_gmlib_loads_no_optional_module():
    assert run(f"import json, sys, gmlib; print(json.dumps(sorted(set({OPTIONAL}) & set(sys.modules))))") == []


def test_gmlib_imports_no_module_that_only_unix_has():
    code = """
import json, sys
sys.modules |= dict.fromkeys(("fcntl", "resource", "pwd", "grp", "termios"))
import pathlib, pkgutil, importlib, tempfile, gmlib, gmlib.files
with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, "a.json")
    for content in ({"x": 1}, {"x": 2}):
        gmlib.files.write_json(path, content)
    assert [each.name for each in path.parent.iterdir()] == ["a.json"]
names = [m.name for m in pkgutil.walk_packages(gmlib.__path__, "gmlib.") if m.name != "gmlib.__main__"]
print(json.dumps([name for name in names if not importlib.import_module(name)]))
"""
    assert run(code) == []
