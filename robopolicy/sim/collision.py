"""The Panda's URDF for PyBullet: without visuals (the rasteriser has its own), each collision mesh as its convex hull.

Bullet takes the hull of a mesh anyway; written down once it loads in half the time, and the URDF is loaded at every reset.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from robopolicy.resources import cache_dir
from robopolicy.sim.description import panda_urdf

CACHE_NAME = "panda-collision-v1"


@cache
def collision_urdf() -> str:
    """Path of the URDF in the cache, built there on first use. Safe when several processes build at once."""
    folder = cache_dir() / CACHE_NAME
    if not (folder / "panda.urdf").is_file():
        source = panda_urdf()
        part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{CACHE_NAME}."))
        try:
            text = re.sub(r"<visual>.*?</visual>", "", source.read_text(), flags=re.S)
            for name in sorted(set(re.findall(r'filename="package://([^"]+\.obj)"', text))):
                (part / Path(name).name).write_text(hull((source.parent / name).read_text()))
                text = text.replace(f"package://{name}", Path(name).name)
            (part / "panda.urdf").write_text(text)
            part.replace(folder)
        except OSError:
            if not (folder / "panda.urdf").is_file():  # unless another process was first
                raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return str(folder / "panda.urdf")


def hull(obj: str) -> str:
    """The convex hull of a Wavefront OBJ, as one."""
    from scipy.spatial import ConvexHull

    points = np.array([[float(x) for x in line.split()[1:4]] for line in obj.splitlines() if line.startswith("v ")])
    found = ConvexHull(points)
    index = {int(vertex): i + 1 for i, vertex in enumerate(found.vertices)}
    lines = ["v {:.9g} {:.9g} {:.9g}".format(*points[vertex]) for vertex in found.vertices]
    lines += ["f {} {} {}".format(*(index[int(corner)] for corner in face)) for face in found.simplices]
    return "\n".join([*lines, ""])
