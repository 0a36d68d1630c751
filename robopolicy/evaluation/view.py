"""What worlds and episodes look like: a contact sheet, a video and a page with the drawn randomisation values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from robopolicy.data.actors import Actor
from robopolicy.data.collect import environment, episode_seed, robot_env
from robopolicy.data.episodes import EpisodeStore
from robopolicy.evaluation.film import film_actor, look, strip
from robopolicy.evaluation.pictures import colour_depth, colour_segmentation, contact_sheet, enlarged, png, write_video
from robopolicy.files import atomic_write
from robopolicy.sim.world import CAMERAS
from robopolicy.spec import Array, did_you_mean

KINDS = ("rgb", "depth", "segmentation")
_INKS = {"success": (23, 105, 47), "failure": (160, 32, 32), "": (30, 30, 30)}
_Video = tuple[Array, float, str]  # frames uint8 [T, H, W, 3], frames per second, caption
_DEPTH, _IMAGES = "observation.depth.", "observation.images."


@dataclass
class Shown:
    """A world or an episode on the page: its pictures [h, w, 3], a caption, an outcome, and the values drawn for it."""

    caption: str
    pictures: list[Array]
    outcome: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)


def view_worlds(
    out: str | Path,
    env_id: str,
    env_kwargs: Mapping[str, Any],
    *,
    count: int = 12,
    seed: int = 0,
    cameras: Sequence[str] | None = None,
    kinds: Sequence[str] = ("rgb",),
    size: int = 192,
    actor: Actor | None = None,
    title: str = "",
) -> Path:
    """Show the first `count` worlds of an evaluation of an environment with `seed` (Suite.draw); the page.

    cameras: some of world.CAMERAS; None = all. kinds: some of KINDS. size: px of each picture. actor: whose episode in the
    first of the worlds becomes a video.

    Raises:
        ValueError: an unknown camera or kind, or count below 1.
    """
    cameras = list(cameras or CAMERAS)
    for name, chosen, known in (("cameras", cameras, CAMERAS), ("kinds", kinds, KINDS)):
        for item in chosen:
            if item not in known:
                raise ValueError(f"{name} has {item!r}; {did_you_mean(item, known)}")
    if count < 1:
        raise ValueError(f"worlds={count}: give at least 1")
    env = environment(env_id, env_kwargs)
    seeds = [episode_seed(seed, i) for i in range(count)]
    shown = []
    for world_seed in seeds:
        _, info = env.reset(seed=world_seed)
        seen = [look(env, camera, size) for camera in cameras]
        pictures = [_coloured(kind, getattr(frame, kind)) for kind in kinds for frame in seen]
        shown.append(Shown(f"seed {world_seed}", pictures, values=info.get("randomization", {})))
    video: _Video | None = None
    if actor is not None:
        frames, episode = film_actor(env, actor, seeds[0], cameras, size=256, every=1)
        row = episode.row
        about = f"seed {seeds[0]}: {_outcome(row['success'])} after {row['length']} steps, progress {row['progress']:.2f}"
        video = frames, robot_env(env).control_hz, about
    what = ", ".join(f"{kind} {camera}" for kind in kinds for camera in cameras)
    return _write(Path(out), title or env_id, f"{count} worlds of {env_id}; in each: {what}", shown, video)


def view_dataset(
    out: str | Path, path: str | Path, *, count: int = 12, episode: int | None = None, num_frames: int = 6
) -> Path:
    """Show `count` episodes of a dataset, evenly spaced, and a video of one (None = the first); the page.

    Raises:
        ValueError: a dataset without images or depth, no such episode, or count below 1. DatasetError: see EpisodeStore.
    """
    store = EpisodeStore(path)
    keys = sorted(key for key in store.spec.features if key.startswith((_IMAGES, _DEPTH)))
    if not keys:
        raise ValueError(f"{path} has neither images nor depth to show; it holds {', '.join(sorted(store.spec.features))}")
    if not len(store):
        raise ValueError(f"{path} has no episodes")
    if count < 1:
        raise ValueError(f"worlds={count}: give at least 1")
    if episode is not None and not 0 <= episode < len(store):
        raise ValueError(f"episode={episode}: {path} has episodes 0 to {len(store) - 1}")
    chosen = np.unique(np.linspace(0, len(store) - 1, min(count, len(store))).round().astype(int)).tolist()
    key = next((key for key in keys if key.startswith(_IMAGES)), keys[0])
    shown = []
    for index in chosen:
        frames = strip(_recorded(store, index, key), num_frames)
        facts = store.info(index)
        outcome = _outcome(facts["success"]) if "success" in facts else ""
        words = [f"{index}", str(facts.get("source", "")), outcome, f"{int(store.lengths[index])} steps"]
        values = facts.get("randomization") or {}
        shown.append(Shown("  ".join(word for word in words if word), list(enlarged(frames, 96)), outcome, values))
    index = episode or 0
    film = np.concatenate([enlarged(_recorded(store, index, k), 256) for k in keys if _same_height(store, k, key)], axis=2)
    video = film, store.spec.fps, f"episode {index}: {store.table['file'][index].as_py()}"
    about = f"{len(chosen)} of {len(store)} episodes of {path}; {key.removeprefix('observation.')} from start to end"
    return _write(Path(out), Path(path).name, about, shown, video, columns=2)


def _same_height(store: EpisodeStore, key: str, other: str) -> bool:
    return store.spec.features[key].shape[0] == store.spec.features[other].shape[0]


def _recorded(store: EpisodeStore, index: int, key: str) -> Array:
    """Frames uint8 [T, H, W, 3] that an episode recorded under an image or depth key."""
    return _coloured("depth" if key.startswith(_DEPTH) else "rgb", store.read(index, [key])[key])


def _coloured(kind: str, picture: Array) -> Array:
    if kind == "depth":
        return colour_depth(picture)
    return colour_segmentation(picture) if kind == "segmentation" else picture


def _outcome(success: Any) -> str:
    return "success" if success else "failure"


def _write(
    out: Path,
    title: str,
    about: str,
    shown: Sequence[Shown],
    video: tuple[Array, float, str] | None,
    columns: int | None = None,
) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    columns = columns or max(1, 6 // len(shown[0].pictures))
    inks = [_INKS[item.outcome] for item in shown]
    sheet = contact_sheet([item.pictures for item in shown], [item.caption for item in shown], columns, inks)
    atomic_write(out / "sheet.png", png(sheet))
    for i, item in enumerate(shown):
        atomic_write(out / f"picture_{i:03d}.png", png(item.pictures[0]))
    file = write_video(out / "episode.mp4", video[0], video[1]).name if video else ""
    varying, fixed = _values([item.values for item in shown])
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    template = jinja2.Environment(loader=loader, autoescape=True).get_template("view.html.j2")
    page = template.render(
        title=title, about=about, shown=shown, video=file, film=video[2] if video else "", varying=varying, fixed=fixed
    )
    atomic_write(out / "index.html", page.encode())
    return out / "index.html"


def _values(drawn: Sequence[Mapping[str, Any]]) -> tuple[dict[str, list[tuple[str, str]]], dict[str, tuple[str, str]]]:
    """Parameters that differ between worlds, each with its (text, CSS colour) in every world, and those that do not."""
    names = sorted({name for values in drawn for name in values})
    cells = {name: [_cell(name, values.get(name)) for values in drawn] for name in names}
    varying = {name: row for name, row in cells.items() if len(set(row)) > 1}
    return varying, {name: row[0] for name, row in cells.items() if name not in varying}


def _cell(name: str, value: Any) -> tuple[str, str]:
    numbers = np.atleast_1d(np.asarray(value, float)) if value is not None else np.zeros(0)
    colour = ""
    if name.endswith("rgb") and numbers.size == 3:
        colour = "rgb({:.0f} {:.0f} {:.0f})".format(*np.clip(numbers, 0.0, 1.0) * 255)
    return " ".join(f"{number:.3g}" for number in numbers), colour
