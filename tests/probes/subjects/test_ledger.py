"""The ledger: what was written stays, whoever is killed, whoever else writes."""

import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from probes import InputError
from probes.subjects import Ledger

WRITER = """
import sys
from pathlib import Path
from probes.subjects.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]))
for number in range(10**9):
    ledger.put(f"{sys.argv[2]}{number}", "x" * 5000)
    print(number, flush=True)
"""


def test_two_writers_that_are_killed_lose_nothing_that_was_written(tmp_path):
    path = tmp_path / "ledger.jsonl"
    jobs = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), name], stdout=subprocess.PIPE, text=True)
        for name in "ab"
    ]
    acknowledged = []
    for job in jobs:
        assert job.stdout is not None
        for _ in range(50):
            job.stdout.readline()
    for job in jobs:
        job.send_signal(signal.SIGKILL)
        assert job.stdout is not None
        acknowledged.append(49 + len([line for line in job.stdout.read().split("\n")[:-1] if line]))
        job.stdout.close()
        assert job.wait() == -signal.SIGKILL
    found = Ledger(path)
    for name, last in zip("ab", acknowledged, strict=True):
        assert all(f"{name}{number}" in found for number in range(last + 1))
    assert all(value == "x" * 5000 for value in found._entries.values())


@given(cut=st.integers(0, 200), text=st.text(max_size=5))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_line_that_is_cut_harms_no_other(tmp_path, cut, text):
    path = tmp_path / "ledger.jsonl"
    path.unlink(missing_ok=True)
    whole = Ledger(path)
    values = {"a": {"x": 1.5}, "b": text, "c": None, "d": [text, "\u2028"]}
    for key, value in values.items():
        whole.put(key, value)
    data = path.read_bytes()
    path.write_bytes(data[: max(0, len(data) - cut)])
    kept = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    broken = Ledger(path)
    assert {key: broken[key] for key, _ in kept} == dict(kept)
    broken.put("new", text)
    again = Ledger(path)
    assert again["new"] == text and all(again[key] == value for key, value in kept)
    assert all(values.get(key, text) == again[key] for key in again._entries)


def test_threads_share_it(tmp_path):
    ledger = Ledger(tmp_path / "deep" / "ledger.jsonl")
    with ThreadPoolExecutor(8) as workers:
        list(workers.map(lambda n: ledger.put(str(n % 100), n), range(400)))
    assert len(Ledger(ledger.path)) == len(ledger) == 100
    assert all(Ledger(ledger.path)[str(n)] % 100 == n for n in (0, 50, 99))


def test_odd_lines_do_not_count(tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b'["a", 1]\nnull\n{}\n[1, 2]\n["b"]\n\xff\xfe\n' + b"[" * 100_000 + b'\n["a", 2]\n')
    assert Ledger(path)._entries == {"a": 2}
    with pytest.raises(InputError, match="a folder"):
        Ledger(tmp_path)
