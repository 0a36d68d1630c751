"""Pages of worlds and of recorded episodes."""

import re

import numpy as np
import pytest
from PIL import Image

from robopolicy import spec
from robopolicy.data.actors import scripted_actor
from robopolicy.data.collect import environment, episode_seed, play
from robopolicy.data.episodes import EpisodeStore, write_episodes
from robopolicy.evaluation.pictures import colour_depth, contact_sheet, write_video
from robopolicy.evaluation.rollout import Suite
from robopolicy.evaluation.view import view_dataset, view_worlds

LIFT = "robopolicy/Lift-v0"
KWARGS = {"observation": ["state"], "randomization": "narrow"}


def missing_links(page):
    """Files that a page names beside itself and that are not there."""
    return [name for name in re.findall(r'src="([^"]+)"', page.read_text()) if not (page.parent / name).is_file()]


@pytest.mark.parametrize("env_id", [LIFT, "robopolicy/LiftTwin-v0"])
def test_worlds_are_shown_with_what_was_drawn_for_them(env_id, tmp_path):
    kinds = ("rgb", "depth", "segmentation")
    page = view_worlds(tmp_path, env_id, KWARGS, count=3, seed=5, kinds=kinds, size=32, cameras=["front"])
    text = page.read_text()
    assert not missing_links(page)
    assert all(f"seed {episode_seed(5, i)}" in text for i in range(3))
    rows = dict(re.findall(r"<tr><td>([^<]+)</td>(.*)</tr>", text))
    assert len(set(re.findall(r"<td>([^<]+)</td>", rows["object.x"]))) == 3, "each world has a value of its own"
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape[1] > 3 * 32
    assert len(np.unique(sheet.reshape(-1, 3), axis=0)) > 50


def test_the_film_is_of_the_episode_that_an_evaluation_would_see(tmp_path):
    page = view_worlds(tmp_path, LIFT, KWARGS, count=1, seed=2, size=16, actor=scripted_actor("expert"))
    [seed] = Suite.draw("any", LIFT, KWARGS, 1, seed=2, split="select").seeds
    row = play(environment(LIFT, KWARGS), scripted_actor("expert"), seed).row
    outcome = "success" if row["success"] else "failure"
    assert f"seed {seed}: {outcome} after {row['length']} steps" in page.read_text()
    assert not missing_links(page)


def test_recorded_episodes_are_shown_with_their_outcome(tmp_path):
    rng, episodes = np.random.default_rng(0), []
    for i in range(5):
        images = rng.integers(0, 255, (7, 12, 12, 3), dtype=np.uint8)
        arrays = {spec.image_key("front"): images, spec.ACTION: np.zeros((7, 2), np.float32)}
        episodes.append({**arrays, "success": i == 3, "source": "expert", "randomization": {"object.mass": 0.1 * i}})
    write_episodes(tmp_path / "data", episodes, fps=10)
    page = view_dataset(tmp_path / "page", tmp_path / "data", count=10, episode=3)
    text = page.read_text()
    assert not missing_links(page)
    assert (text.count(">success<"), text.count(">failure<")) == (1, 4)
    assert "object.mass" in text
    assert EpisodeStore(tmp_path / "data").table["file"][3].as_py() in text
    with pytest.raises(ValueError, match="has episodes 0 to 4"):
        view_dataset(tmp_path / "page", tmp_path / "data", episode=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cameras": ["frnt"]}, "did you mean 'front'"),
        ({"kinds": ["dept"]}, "did you mean 'depth'"),
        ({"count": 0}, "at least 1"),
    ],
)
def test_mistakes_leave_no_page(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        view_worlds(tmp_path / "page", LIFT, KWARGS, **options)
    assert not (tmp_path / "page").exists()


def test_pictures_keep_their_pixels(tmp_path):
    pictures = [[np.full((8, 10, 3), 10 * i + j, np.uint8) for j in range(2)] for i in range(5)]
    sheet = contact_sheet(pictures, [str(i) for i in range(5)], columns=2)
    assert all((sheet == 10 * i + j).all(-1).sum() >= 80 for i in range(1, 5) for j in range(2))
    depth = np.array([[0.0, 0.5], [1.0, 3.0]], np.float32)
    colours = colour_depth(depth).astype(int).sum(-1)
    assert colours[0, 0] == 0, "nothing measured"
    assert colours[0, 1] > colours[1, 0] > 0
    frames = np.repeat(np.arange(0, 250, 25, dtype=np.uint8), 17 * 19 * 3).reshape(10, 17, 19, 3)
    file = write_video(tmp_path / "film.mp4", frames, fps=10)
    if file.suffix == ".gif":
        assert Image.open(file).n_frames == len(frames)
    else:
        av = pytest.importorskip("av")
        with av.open(str(file)) as container:
            decoded = [frame.to_ndarray(format="rgb24").mean() for frame in container.decode(video=0)]
        np.testing.assert_allclose(decoded, frames.mean((1, 2, 3)), atol=6)
