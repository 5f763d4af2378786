"""A short part of `make faults`."""

import sys

import pytest

if sys.platform == "win32":
    pytest.skip("needs fork and POSIX signals", allow_module_level=True)

import faults


@pytest.mark.parametrize(
    ("kind", "works"),
    [
        ("kills", ["condense_together", "store.run"]),
        ("disks", ["store.run"]),
        ("side", ["store.run"]),
        ("files", []),
        ("inputs", []),
    ],
)
def test_faults_are_survived(kind, works):
    rows = list(faults.run([kind], quick=True, works=works, seed=1))
    assert sum(row.tried for row in rows) >= {"inputs": 200, "files": 20}.get(kind, 1)
    failed = [example for row in rows for example in row.examples]
    assert not failed and all(row.held == row.tried for row in rows)


def test_a_fault_that_is_not_survived_is_counted(tmp_path):
    """Every result that is not held, by work that fails in that way."""
    row = faults.Row("kill", "made up")
    expected = {}

    def broken(folder):
        raise KeyError("inside")

    def refused(folder):
        raise ValueError("this cannot be continued: delete the folder")

    def other(folder):
        (folder / "run.json").write_text('{"accuracy": 1}')
        (folder / ".set.safetensors.12.tmp").touch()

    for work in (broken, refused, other):
        faults.finish(row, work, tmp_path / work.__name__, expected)
    assert (row.tried, row.held, row.lost, row.silent, row.traceback, row.leftovers) == (3, 0, 1, 1, 1, 1)
    faults.judge(row, lambda: {}["x"], lambda found: True, "a call")
    faults.judge(row, lambda: 2, lambda found: found == 1, "a call")
    faults.judge(row, lambda: 1, lambda found: found == 1, "a call")
    assert (row.tried, row.held, row.silent, row.traceback) == (6, 1, 2, 2)
    assert faults.is_refusal(ValueError("x=1 does not fit: give 2 or 3.5"))
    for error in (KeyError("a long enough message"), ValueError("short"), ValueError("First part. Second part")):
        assert not faults.is_refusal(error)
