"""Checkpoint folders."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from robopolicy import checkpoint
from robopolicy.checkpoint import CheckpointError

META = {"kind": "policy", "step": 3, "metrics": {"loss": np.float32(0.5), "bad": float("nan")}}
CONFIG = {"policy": {"_target_": "robopolicy.policies.bc.BCPolicy", "width": 8, "scales": (1, 2)}}


def module() -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    net.register_buffer("coarse", torch.arange(3, dtype=torch.bfloat16))
    return net


def saved(run: Path, step: int = 3) -> Path:
    folder = checkpoint.step_folder(run, step)
    checkpoint.save(folder, module().state_dict(), CONFIG, META)
    return folder


def test_save_and_load_are_bit_equal(tmp_path):
    net, folder = module(), checkpoint.step_folder(tmp_path, 3)
    checkpoint.save(folder, net.state_dict(), CONFIG, META)
    for path in (folder, folder / "model", str(folder)):
        loaded = checkpoint.load(path)
        assert loaded.path == folder / "model"
        assert loaded.tensors.keys() == net.state_dict().keys()
        for name, tensor in net.state_dict().items():
            assert loaded.tensors[name].dtype == tensor.dtype
            assert torch.equal(loaded.tensors[name], tensor)
    assert loaded.config == {"policy": {**CONFIG["policy"], "scales": [1, 2]}}
    assert loaded.meta == {"kind": "policy", "step": 3, "metrics": {"loss": 0.5, "bad": None}, "schema": 1}
    other = module()
    checkpoint.load_into(other, loaded.tensors, folder)
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), net.state_dict().values(), strict=True))


def test_tied_and_strided_tensors_are_stored(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    checkpoint.save(tmp_path / "step_1", {"a": base, "b": base, "c": base.T}, {}, {})
    tensors = checkpoint.load(tmp_path / "step_1").tensors
    assert torch.equal(tensors["a"], tensors["b"])
    assert torch.equal(tensors["c"], base.T)


def test_training_state_round_trips(tmp_path):
    folder = saved(tmp_path)
    tensors = {"exp_avg": torch.rand(4), "rng": torch.get_rng_state()}
    state = {"step": 7, "best": float("inf"), "names": ["a"]}
    checkpoint.save_training(folder, tensors, state)
    for path in (folder, folder / "model"):
        loaded, loaded_state = checkpoint.load_training(path)
        assert loaded_state == state
        assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    with pytest.raises(CheckpointError, match=r"no checkpoint|lacks state.safetensors"):
        checkpoint.load_training(saved(tmp_path, 4))


def test_misfit_names_tensors_and_remedy_and_copies_nothing(tmp_path):
    net = module()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    tensors = {**module().state_dict(), "extra.weight": torch.zeros(1)}
    del tensors["2.bias"], tensors["coarse"]
    with pytest.raises(CheckpointError, match=r"lacks 2.bias, coarse and has unknown extra.weight.*its own config.yaml"):
        checkpoint.load_into(net, tensors, tmp_path)
    with pytest.raises(CheckpointError, match=r"0.bias \[5\] for \[4\]"):
        checkpoint.load_into(net, {**module().state_dict(), "0.bias": torch.zeros(5)}, tmp_path)
    with pytest.raises(CheckpointError, match="and 5 more"):
        checkpoint.load_into(net, {}, tmp_path)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_damaged_checkpoint_is_named(tmp_path):
    folder = saved(tmp_path)
    weights, meta = folder / "model" / "model.safetensors", folder / "model" / "meta.json"
    data = weights.read_bytes()
    for cut in (0, 5, len(data) // 2, len(data) - 1):
        weights.write_bytes(data[:cut])
        with pytest.raises(CheckpointError, match=r"model.safetensors \(\d+ bytes\) is damaged"):
            checkpoint.load(folder)
    weights.write_bytes(data)
    meta.write_text('{"schema": 1')
    with pytest.raises(CheckpointError, match=r"meta.json is damaged"):
        checkpoint.load(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"lacks model.safetensors"):
        checkpoint.load(folder)


def test_missing_checkpoint_says_what_is_there(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        checkpoint.load(tmp_path / "nowhere")
    saved(tmp_path)
    with pytest.raises(CheckpointError, match=r"checkpoints in it: .*step_000003"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    ("schema", "message"), [(99, "update robopolicy"), (None, "not a checkpoint"), (0, "not a checkpoint")]
)
def test_unknown_schema_is_refused(tmp_path, schema, message):
    folder = saved(tmp_path)
    (folder / "model" / "meta.json").write_text(json.dumps({"schema": schema}))
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(folder)


def test_yaml_that_would_run_code_is_refused(tmp_path):
    folder = saved(tmp_path)
    (folder / "model" / "config.yaml").write_text("a: !!python/object/apply:os.getcwd []")
    with pytest.raises(CheckpointError, match="not plain YAML"):
        checkpoint.load(folder)


def test_values_that_are_not_plain_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"config.policy.f is a function"):
        checkpoint.save(tmp_path / "step_1", {}, {"policy": {"f": module}}, {})
    with pytest.raises(CheckpointError, match="'x' is a int"):
        checkpoint.save(tmp_path / "step_1", {"x": 3}, {}, {})
    assert not (tmp_path / "step_1").exists()


def test_overwrite_replaces_all_and_a_failed_one_keeps_the_old(tmp_path):
    folder = saved(tmp_path)
    checkpoint.save(folder, {"w": torch.ones(2)}, {"new": True}, {"step": 4})
    assert checkpoint.load(folder).config == {"new": True}
    with pytest.raises(CheckpointError):
        checkpoint.save(folder, {"w": "text"}, {}, {})
    assert checkpoint.load(folder).meta["step"] == 4
    assert [path.name for path in folder.iterdir()] == ["model"]


def test_overwrite_killed_between_its_renames_still_loads(tmp_path):
    folder = saved(tmp_path)
    expected = checkpoint.sha256(folder)
    shutil.copytree(folder / "model", folder / ".model.new")
    (folder / "model").rename(folder / ".model.old")
    assert checkpoint.sha256(folder) == expected
    assert checkpoint.list_checkpoints(tmp_path) == [folder]
    checkpoint.save(folder, {"w": torch.ones(2)}, {"new": True}, {})
    assert checkpoint.load(folder).config == {"new": True}
    assert [path.name for path in folder.iterdir()] == ["model"]


def test_checkpoints_are_listed_by_step_and_latest_is_the_one_written_last(tmp_path):
    assert checkpoint.list_checkpoints(tmp_path / "none") == []
    assert checkpoint.latest(tmp_path) is None
    folders = [saved(tmp_path, step) for step in (1_000_000, 5, 20)]
    (tmp_path / "checkpoints" / "step_000007").mkdir()
    by_step = [folders[1], folders[2], folders[0]]
    assert checkpoint.list_checkpoints(tmp_path) == checkpoint.list_checkpoints(tmp_path / "checkpoints") == by_step
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step_000020\n"
    assert checkpoint.latest(tmp_path) == folders[2]
    shutil.rmtree(folders[2])
    assert checkpoint.latest(tmp_path) == folders[0]


def test_sha256_tells_checkpoints_apart(tmp_path):
    net = module()
    for step in (1, 2):
        checkpoint.save(checkpoint.step_folder(tmp_path, step), net.state_dict(), CONFIG, META)
    one, two = checkpoint.list_checkpoints(tmp_path)
    assert checkpoint.sha256(one) == checkpoint.sha256(two / "model")
    checkpoint.save(two, module().state_dict(), CONFIG, META)
    assert checkpoint.sha256(one) != checkpoint.sha256(two)


def test_git_commit_is_that_of_the_checkout_or_empty():
    root = Path(checkpoint.__file__).parents[1]
    head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], check=False, capture_output=True, text=True)
    expected = head.stdout.strip() if head.returncode == 0 and (root / ".git").exists() else ""
    assert checkpoint.git_commit().removesuffix("-dirty") == expected
