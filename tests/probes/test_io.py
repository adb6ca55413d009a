"""Files that are whole or absent."""

import json

import numpy as np
import pytest
import torch

from probes import InputError, read_json, write_json
from probes.io import atomic_file, atomic_folder


def test_json_round_trip(tmp_path):
    value = {"b": [1, 2.5, None, True], "a": {"é": "x"}, "n": np.float32(0.5), "t": torch.tensor([1, 2]), "p": tmp_path}
    write_json(tmp_path / "deep" / "x.json", value)
    text = (tmp_path / "deep" / "x.json").read_text()
    assert list(json.loads(text)) == ["a", "b", "n", "p", "t"] and '\n "a"' in text
    assert read_json(tmp_path / "deep" / "x.json")["t"] == [1, 2]
    assert (tmp_path / "deep" / "x.json").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("value", "told"), [({"a": [1, float("nan")]}, r"\$\.a\[1\]: nan"), ({"a": np.inf}, "inf"), ({"a": {1, 2}}, "set")]
)
def test_what_json_cannot_hold(tmp_path, value, told):
    with pytest.raises(InputError, match=told):
        write_json(tmp_path / "x.json", value)
    assert list(tmp_path.iterdir()) == []


def test_bad_json(tmp_path):
    (tmp_path / "x.json").write_text("{")
    for name, told in (("x.json", "not JSON"), ("y.json", "no such file")):
        with pytest.raises(InputError, match=told):
            read_json(tmp_path / name)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "x.json", 1)
    with pytest.raises(RuntimeError), atomic_file(tmp_path / "x.json") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(tmp_path / "x.json") == 1 and len(list(tmp_path.iterdir())) == 1


def test_folders_appear_whole(tmp_path):
    for content in ("old", "new"):
        with atomic_folder(tmp_path / "out") as folder:
            (folder / "a.txt").write_text(content)
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "out") as folder:
        raise RuntimeError
    assert (tmp_path / "out" / "a.txt").read_text() == "new" and len(list(tmp_path.iterdir())) == 1
