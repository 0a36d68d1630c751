"""Whole datasets: every changed byte is found, a full disk leaves nothing half written, merge and split lose nothing."""

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from robopolicy.data import manage
from robopolicy.data.episode_file import DatasetError, verify
from robopolicy.data.episodes import EpisodeStore, EpisodeWriter
from robopolicy.data.info_file import verify_info
from robopolicy.data.manage import check, describe, merge, select_episodes, split
from robopolicy.data.seal import is_intact
from robopolicy.data.table import check_table
from robopolicy.spec import ACTION, STATE, SUCCESS, TASK, DatasetSpec, FeatureSpec, SpecError

SPEC = DatasetSpec(
    features={STATE: FeatureSpec((3,), unit="m"), ACTION: FeatureSpec((2,)), SUCCESS: FeatureSpec((), "bool")}, fps=20.0
)


def episode(seed: int, steps: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        STATE: rng.normal(size=(steps, 3)).astype(np.float32),
        ACTION: rng.normal(size=(steps, 2)).astype(np.float32),
        SUCCESS: np.arange(steps) == steps - 1,
    }


def dataset(path: Path, seeds=range(3)) -> Path:
    writer = EpisodeWriter(path, SPEC)
    for seed in seeds:
        info = {TASK: "lift", "success": seed % 3 == 0, "seed": seed, "randomization": {"mass": 0.1 * seed, "rgb": [0, seed]}}
        writer.add(episode(seed), info)
    EpisodeStore(path)
    return path


def unsealed(path: Path) -> Path:
    """A dataset as it was written before files held checksums: no seal in info.json, no zip comment, another table."""
    dataset(path)
    content = json.loads((path / "info.json").read_bytes())
    del content["seal"]
    (path / "info.json").write_text(json.dumps(content, indent=2))
    for file in (path / "episodes").iterdir():
        buffer = io.BytesIO(file.read_bytes())
        with zipfile.ZipFile(buffer) as archive:
            end = len(buffer.getvalue()) - len(archive.comment)
        file.write_bytes(buffer.getvalue()[: end - 2] + bytes(2))
    (path / "episodes.parquet").unlink()
    return path


# --- check ----------------------------------------------------------------------------------------------------------


def harms(data: bytes, rng: np.random.Generator):
    """A changed bit in every byte; then ranges zeroed, overwritten, doubled and cut out, truncations, appended garbage."""
    for at in range(len(data)):
        yield data[:at] + bytes([data[at] ^ (1 << int(rng.integers(8)))]) + data[at + 1 :]
    for _ in range(300):
        a, b = sorted(rng.integers(0, len(data) + 1, 2).tolist())
        yield from (data[:a] + bytes(b - a) + data[b:], data[:a] + rng.bytes(b - a) + data[b:])
        yield from (data[:a] + data[b:], data[:b] + data[a:], data[:a])
    yield from (data + garbage for garbage in (b"\0", b"\n", rng.bytes(50), data, data[-100:]))


@pytest.mark.parametrize(("make", "kind"), [(dataset, "episode"), (dataset, "info"), (dataset, "table"), (unsealed, "episode")])
def test_any_change_of_any_byte_range_is_found(tmp_path, make, kind):
    path = make(tmp_path / "set")
    verifiers = {
        "episode": (path / "episodes" / "episode_000001.zarr.zip", verify),
        "info": (path / "info.json", lambda file: verify_info(file.parent)),
        "table": (path / "episodes.parquet", lambda file: _raise(check_table(file, path / "episodes"))),
    }
    file, verifier = verifiers[kind]
    data = file.read_bytes()
    verifier(file)
    missed = []
    for number, harmed in enumerate(harms(data, np.random.default_rng(0))):
        if harmed == data:
            continue
        file.write_bytes(harmed)
        try:
            verifier(file)
            missed.append(number)
        except DatasetError:
            pass
    assert missed == []


def _raise(problems: list[str]) -> None:
    if problems:
        raise DatasetError(problems[0])


def test_check_names_every_damaged_swapped_and_lost_file_with_its_remedy(tmp_path):
    path = dataset(tmp_path / "set", range(8))
    assert check(path) == ([], 8)
    files = sorted((path / "episodes").iterdir())
    for number, at in ((0, 30), (3, -8)):  # the name of a member in its local header; the end record, where no CRC looks
        data = bytearray(files[number].read_bytes())
        data[at] ^= 1
        files[number].write_bytes(data)
    files[5].rename(tmp_path / "swap")
    files[6].rename(files[5])
    (tmp_path / "swap").rename(files[6])
    files[7].unlink()
    (path / "info.json").write_bytes((path / "info.json").read_bytes().replace(b'"m"', b'"n"', 1))
    problems, count = check(path)
    assert count == 7
    assert [problem.split()[0] for problem in problems[2:]] == [str(files[i]) for i in (0, 3, 5, 6)]
    assert problems[0].startswith(str(path / "info.json"))
    assert files[7].name in problems[1]
    assert all(("restore" in problem) or ("give it back the name" in problem) for problem in problems)
    with pytest.raises(DatasetError, match="its checksum differs"):
        EpisodeStore(path)


def test_a_lost_episode_is_reported_until_it_is_back_or_given_up(tmp_path, caplog):
    path = dataset(tmp_path / "set")
    file = path / "episodes" / "episode_000001.zarr.zip"
    file.rename(tmp_path / "away")
    EpisodeWriter(path, SPEC).add(episode(3), name="more")
    for _ in range(2):
        assert len(EpisodeStore(path)) == 3
        assert file.name in caplog.text
        assert [file.name in problem for problem in check(path)[0]] == [True]
        caplog.clear()
    (tmp_path / "away").rename(file)
    assert (len(EpisodeStore(path)), check(path), caplog.text) == (4, ([], 4), "")
    file.unlink()
    (path / "episodes.parquet").unlink()
    assert (len(EpisodeStore(path)), check(path), caplog.text) == (3, ([], 3), "")


def test_check_accepts_datasets_written_before_there_were_checksums(tmp_path):
    path = unsealed(tmp_path / "set")
    assert check(path) == ([], 3)
    store = EpisodeStore(path)
    assert np.array_equal(store.read(1)[STATE], episode(1)[STATE])
    assert check(path) == ([], 3)
    assert is_intact((path / "episodes.parquet").read_bytes())


def test_the_table_of_a_growing_dataset_equals_one_made_from_scratch(tmp_path):
    path = tmp_path / "set"
    rows = [{"a": 1}, {"a": 2.5, "b": None}, {"b": "x", "c": [1, 2]}, {"a": "text"}, {"a": 2**80}, {}]
    for number, info in enumerate(rows):
        EpisodeWriter(path, SPEC).add(episode(number), info, name=f"e{7 * number % 6}")
        grown = EpisodeStore(path).table
        (path / "episodes.parquet").unlink()
        assert EpisodeStore(path).table.equals(grown)


@pytest.mark.parametrize("verb", ["check", "info"])
def test_the_command_line_names_damage_and_exits_with_2(tmp_path, verb):
    path = dataset(tmp_path / "set")
    command = [sys.executable, "-m", "robopolicy.cli", "data", verb, f"path={path}"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, "3 episodes" in done.stdout) == (0, True), done.stderr
    file = path / "episodes" / "episode_000002.zarr.zip"
    file.write_bytes(file.read_bytes()[:500])
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert str(file) in done.stderr


# --- disk full ------------------------------------------------------------------------------------------------------

FULL = """
import resource, sys
import numpy as np
from robopolicy.data.episodes import EpisodeStore, EpisodeWriter
from robopolicy.spec import DatasetSpec, FeatureSpec
spec = DatasetSpec({"observation.state": FeatureSpec((100,)), "action": FeatureSpec((2,))}, fps=10.0)
writer = EpisodeWriter(sys.argv[1], spec)
small, large = ({key: np.random.default_rng(0).normal(size=(n, *f.shape)).astype("float32") for key, f in spec.features.items()}
                for n in (4, 400))
writer.add(small, name="finished")
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    writer.add(large, name="too_large")
except OSError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
writer.add(large, name="later")
"""


def test_a_write_that_fails_midway_leaves_no_part_of_the_episode(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path / "set")], capture_output=True, text=True, check=True)
    assert "too_large.zarr.zip" in done.stdout
    assert "no part of episode too_large is left and finished ones are intact" in done.stdout
    assert sorted(os.listdir(tmp_path / "set/episodes")) == ["finished.zarr.zip", "later.zarr.zip"]
    assert check(tmp_path / "set") == ([], 2)


# --- merge ----------------------------------------------------------------------------------------------------------


def test_merge_keeps_every_episode_once_whatever_their_names(tmp_path):
    paths = [dataset(tmp_path / "a", range(3)), dataset(tmp_path / "b", range(2, 6)), dataset(tmp_path / "c", range(6, 8))]
    lines = merge(paths, tmp_path / "all")
    store = EpisodeStore(tmp_path / "all")
    assert sorted(store.table["seed"].to_pylist()) == list(range(8))
    for index, seed in enumerate(store.table["seed"].to_pylist()):
        assert np.array_equal(store.read(index)[STATE], episode(seed)[STATE])
    assert "1 duplicates left out" in lines[2]
    assert check(tmp_path / "all") == ([], 8)
    assert any(f"from {tmp_path / 'b'}: 3 episodes" in line for line in describe(tmp_path / "all"))
    merge(paths, tmp_path / "again")
    assert EpisodeStore(tmp_path / "again").hash == store.hash
    assert EpisodeWriter(tmp_path / "all", SPEC).add(episode(9)).exists(), "a merged dataset grows like any other"
    with pytest.raises(SpecError, match=r"has the content of .*duplicates=skip"):
        merge(paths, tmp_path / "strict", duplicates="refuse")
    with pytest.raises(DatasetError, match="exists already"):
        merge(paths, tmp_path / "all")


def test_merge_refuses_other_specs_by_naming_the_difference(tmp_path):
    EpisodeWriter(tmp_path / "b", DatasetSpec(SPEC.features, fps=10.0)).add(episode(0))
    with pytest.raises(SpecError, match=r"fps is 10.0 in .*b and 20.0 in .*a"):
        merge([dataset(tmp_path / "a"), tmp_path / "b"], tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_an_interrupted_merge_shows_nothing_and_goes_on(tmp_path, monkeypatch):
    paths = [dataset(tmp_path / "a", range(3)), dataset(tmp_path / "b", range(3, 6))]
    place, calls = manage._place, []

    def dying(copy, target):
        if len(calls) == 4:
            raise KeyboardInterrupt
        calls.append(target)
        place(copy, target)

    monkeypatch.setattr(manage, "_place", dying)
    with pytest.raises(KeyboardInterrupt):
        merge(paths, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    kept = {file.name: file.stat().st_ino for file in (tmp_path / ".out.part/episodes").iterdir()}
    assert len(kept) == 4
    monkeypatch.setattr(manage, "_place", place)
    merge(paths, tmp_path / "out")
    assert check(tmp_path / "out") == ([], 6)
    assert kept.items() <= {file.name: file.stat().st_ino for file in (tmp_path / "out/episodes").iterdir()}.items()


def test_merge_does_not_vouch_for_damage_it_copies(tmp_path):
    paths = [dataset(tmp_path / "a", range(2)), dataset(tmp_path / "b", range(2, 4))]
    file = paths[1] / "episodes/episode_000000.zarr.zip"  # gets another name, so another seal
    data = bytearray(file.read_bytes())
    data[30] ^= 1  # a local header: no CRC covers it
    file.write_bytes(data)
    with pytest.raises(DatasetError, match=r"episode_000000.zarr.zip is cut short or damaged"):
        merge(paths, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- split ----------------------------------------------------------------------------------------------------------


def test_split_parts_are_disjoint_reproducible_and_of_the_asked_sizes(tmp_path):
    path = dataset(tmp_path / "set", range(30))
    split(path, tmp_path / "x", fractions={"train": 0.7, "val": 0.1, "test": 0.2}, seed=1)
    split(path, tmp_path / "y", fractions={"train": 0.7, "val": 0.1, "test": 0.2}, seed=1)
    split(path, tmp_path / "z", fractions={"train": 0.7, "val": 0.1, "test": 0.2}, seed=2)
    seeds = {
        (run, part): EpisodeStore(tmp_path / run / part).table["seed"].to_pylist()
        for run in "xyz"
        for part in ("train", "val", "test")
    }
    assert [len(seeds["x", part]) for part in ("train", "val", "test")] == [21, 3, 6]
    assert sorted(seed for part in ("train", "val", "test") for seed in seeds["x", part]) == list(range(30))
    assert seeds["x", "train"] == seeds["y", "train"] != seeds["z", "train"]
    assert check(tmp_path / "x/test") == ([], 6)
    assert (tmp_path / "x/test/episodes").iterdir().__next__().stat().st_nlink >= 2, "nothing is copied"


def test_an_interrupted_split_with_other_arguments_leaves_no_trace(tmp_path, monkeypatch):
    path, fill = dataset(tmp_path / "set", range(6)), manage._fill

    def dying(folder, *rest):
        if folder.name == "b":
            raise KeyboardInterrupt
        fill(folder, *rest)

    monkeypatch.setattr(manage, "_fill", dying)
    with pytest.raises(KeyboardInterrupt):
        split(path, tmp_path / "out", fractions={"a": 0.5, "b": 0.5})
    monkeypatch.setattr(manage, "_fill", fill)
    split(path, tmp_path / "out", fractions={"a": 0.5, "b": 0.5}, seed=1)
    assert [check(tmp_path / "out" / part) for part in "ab"] == [([], 3), ([], 3)]


def test_a_stratified_split_keeps_proportions(tmp_path):
    path = dataset(tmp_path / "set", range(30))
    split(path, tmp_path / "out", fractions={"a": 0.5, "b": 0.3}, stratify="success")
    for part, size in (("a", 15), ("b", 9)):
        table = EpisodeStore(tmp_path / "out" / part).table
        assert (table.num_rows, sum(table["success"].to_pylist())) == (size, size // 3)


def test_split_by_a_column_and_where(tmp_path):
    path = dataset(tmp_path / "set", range(6))
    split(path, tmp_path / "by", by="success", where={"seed": [0, 1, 2, 3]})
    assert {p.name: EpisodeStore(p).table["seed"].to_pylist() for p in (tmp_path / "by").iterdir()} == {
        "True": [0, 3],
        "False": [1, 2],
    }
    store = EpisodeStore(path)
    assert select_episodes(store, {"success": [True], "seed": [3, 4]}) == [3]


def test_a_split_by_values_whose_names_would_be_equal_loses_no_episode(tmp_path):
    writer = EpisodeWriter(tmp_path / "set", SPEC)
    for seed, task in enumerate(["push the T!", "push the T?", "push_the_T_", "push the T!", "..", "."]):
        writer.add(episode(seed), {TASK: task, "seed": seed})
    split(tmp_path / "set", tmp_path / "out", by=TASK)
    seeds = [EpisodeStore(path).table["seed"].to_pylist() for path in (tmp_path / "out").iterdir()]
    assert sorted(seeds) == [[0, 3], [1], [2], [4], [5]]
    assert EpisodeStore(tmp_path / "out/push_the_T_").table[TASK].to_pylist() == ["push_the_T_"]


def test_a_single_value_in_where_means_episodes_with_exactly_it(tmp_path):
    writer = EpisodeWriter(tmp_path, SPEC)
    for seed, source in enumerate(["expert", "expert_v2", None]):
        writer.add(episode(seed), {"source": source, "success": seed == 1, "seed": seed})
    store = EpisodeStore(tmp_path)
    chosen = [select_episodes(store, where) for where in ({"source": "expert_v2"}, {"success": True}, {"seed": 2})]
    assert chosen == [[1], [1], [2]]
    with pytest.raises(SpecError, match=r"where=.* does not work"):
        select_episodes(store, ["source"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"by": "sucess"}, "did you mean 'success'"),
        ({"fractions": {"a": 0.8, "b": 0.3}}, "add up to 1.1"),
        ({"fractions": {"a": -0.5}}, r"fractions.a=-0.5 does not work"),
        ({"fractions": {"../a": 0.5}}, "named by letters and digits"),
        ({"fractions": {"..": 0.5}}, "named by letters and digits"),
        ({}, "give either fractions"),
        ({"by": "success", "fractions": {"a": 0.5}}, "give either fractions"),
        ({"by": "success", "where": {"seed": [99]}}, r"no episode has seed in \[99\]"),
    ],
)
def test_a_split_that_cannot_be_is_refused_before_anything_is_written(tmp_path, arguments, message):
    path = dataset(tmp_path / "set")
    with pytest.raises(SpecError, match=message):
        split(path, tmp_path / "out", **arguments)
    assert os.listdir(tmp_path) == ["set"]
