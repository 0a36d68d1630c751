"""The Panda's description as PyBullet simulates it: made once from pybullet_data's into the user's cache folder.

Visuals are left out (the rasteriser has its own). Links on fixed joints are merged into their parents, and each collision
mesh is written as its convex hull, which Bullet takes anyway: the same robot, simulated faster and loaded in half the time.
"""

from __future__ import annotations

import shutil
import tempfile
import xml.etree.ElementTree as ET
from functools import cache
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from robopolicy.resources import cache_dir
from robopolicy.sim.description import link_indices, origin_pose, panda_urdf, without_visuals
from robopolicy.sim.meshes import Mesh, panda_visuals

CACHE_NAME = "panda-collision-v2"


@cache
def collision_urdf() -> str:
    """Path of the URDF in the cache, built there on first use. Safe when several processes build at once."""
    folder = cache_dir() / CACHE_NAME
    if not (folder / "panda.urdf").is_file():
        source, (robot, _) = panda_urdf(), merged()
        part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{CACHE_NAME}."))
        try:
            for mesh in robot.iter("mesh"):
                name = mesh.attrib["filename"].removeprefix("package://")
                mesh.set("filename", Path(name).name)
                (part / Path(name).name).write_text(hull((source.parent / name).read_text()))
            (part / "panda.urdf").write_text(ET.tostring(robot, encoding="unicode"))
            part.replace(folder)
        except OSError:
            if not (folder / "panda.urdf").is_file():  # unless another process was first
                raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return str(folder / "panda.urdf")


def merged() -> tuple[ET.Element, dict[int, tuple[int, np.ndarray]]]:
    """The robot without visuals and fixed joints, and where each of its former links is now.

    Returns:
        The URDF's root, and {PyBullet's index of a link in pybullet_data's URDF: (index in this one, T_new_old [4, 4])}.
    """
    robot = without_visuals()
    links = {link.attrib["name"]: link for link in robot.findall("link")}
    place = {name: (name, np.eye(4)) for name in links}
    before = link_indices(robot)
    for joint in [joint for joint in robot.findall("joint") if joint.get("type") == "fixed"]:
        parent, child = (joint.find(end).attrib["link"] for end in ("parent", "child"))  # type: ignore[union-attr]
        T = origin_pose(joint)
        _join(links[parent], links.pop(child), T)
        robot.remove(joint)
        robot.remove(next(link for link in robot.findall("link") if link.attrib["name"] == child))
        for other in robot.findall("joint"):
            end = other.find("parent")
            if end is not None and end.attrib["link"] == child:
                end.set("link", parent)
                _set_pose(other, T @ origin_pose(other))
        for name, (now, T_now) in place.items():
            if now == child:
                place[name] = parent, T @ T_now
    after = link_indices(robot)
    return robot, {before[name]: (after[now], T) for name, (now, T) in place.items()}


@cache
def merged_visuals() -> list[tuple[int, Mesh, tuple[float, float, float]]]:
    """Link of collision_urdf(), mesh in its frame, and colour of everything that shows of the robot."""
    _, moved = merged()
    return [(moved[v.link][0], v.mesh.moved(moved[v.link][1]), v.rgb) for v in panda_visuals()]


def hull(obj: str) -> str:
    """The convex hull of a Wavefront OBJ, as one."""
    from scipy.spatial import ConvexHull

    points = np.array([[float(x) for x in line.split()[1:4]] for line in obj.splitlines() if line.startswith("v ")])
    found = ConvexHull(points)
    index = {int(vertex): i + 1 for i, vertex in enumerate(found.vertices)}
    lines = ["v {:.9g} {:.9g} {:.9g}".format(*points[vertex]) for vertex in found.vertices]
    lines += ["f {} {} {}".format(*(index[int(corner)] for corner in face)) for face in found.simplices]
    return "\n".join([*lines, ""])


def _join(parent: ET.Element, child: ET.Element, T: np.ndarray) -> None:
    """Move the collision shapes and the mass of `child` to `parent`, in whose frame it has the pose T."""
    for shape in child.findall("collision"):
        _set_pose(shape, T @ origin_pose(shape))
        parent.append(shape)
    (mass, at, into), (more, far, _) = _inertial(parent), _inertial(child)
    if more > 0:
        _set_pose(into, _shift((mass * at + more * (T[:3, :3] @ far + T[:3, 3])) / (mass + more)))
        into.find("mass").set("value", repr(mass + more))  # type: ignore[union-attr]


def _inertial(link: ET.Element) -> tuple[float, np.ndarray, ET.Element]:
    """Mass (kg), centre of mass [3] (m) and the element that says so. Bullet takes the moments from the collision shapes."""
    element = link.find("inertial")
    if element is None:
        raise ValueError(f"the link {link.get('name')!r} of {panda_urdf()} has no mass: reinstall pybullet")
    return float(element.find("mass").attrib["value"]), origin_pose(element)[:3, 3], element  # type: ignore[union-attr]


def _set_pose(element: ET.Element, T: np.ndarray) -> None:
    for old in element.findall("origin"):
        element.remove(old)
    rpy, xyz = Rotation.from_matrix(T[:3, :3]).as_euler("xyz"), T[:3, 3]
    texts = {"rpy": " ".join(map(repr, rpy.tolist())), "xyz": " ".join(map(repr, xyz.tolist()))}
    element.insert(0, ET.Element("origin", texts))


def _shift(position: np.ndarray) -> np.ndarray:
    T = np.eye(4)
    T[:3, 3] = position
    return T
