"""The Panda's description (URDF and meshes), which pybullet_data ships: found, and checked to be whole, before it is used."""

from __future__ import annotations

import importlib.util
import xml.etree.ElementTree as ET
from functools import cache
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation


@cache
def panda_urdf() -> Path:
    """Path of panda.urdf.

    Raises:
        FileNotFoundError: it, or a mesh that it names, is missing; says what to do.
    """
    found = importlib.util.find_spec("pybullet_data")
    if found is None or found.origin is None:
        raise FileNotFoundError("pybullet_data, which holds the robot's description, is missing: reinstall pybullet")
    return checked_urdf(Path(found.origin).parent / "franka_panda" / "panda.urdf")


def checked_urdf(path: Path) -> Path:
    """`path`, once it and every mesh that it names are known to exist. Raises FileNotFoundError naming one that does not."""
    if not path.is_file():
        raise FileNotFoundError(f"the robot's description {path} is missing: reinstall pybullet")
    for mesh in ET.parse(path).getroot().iter("mesh"):
        file = path.parent / mesh.get("filename", "").removeprefix("package://")
        if not file.is_file():
            raise FileNotFoundError(f"{path} names the mesh {file}, which is missing: reinstall pybullet")
    return path


def without_visuals() -> ET.Element:
    """The root of panda.urdf with no visuals in it, parsed anew for every caller. Raises FileNotFoundError as panda_urdf()."""
    robot = ET.parse(panda_urdf()).getroot()
    for link in robot.findall("link"):
        for visual in link.findall("visual"):
            link.remove(visual)
    return robot


def link_indices(robot: ET.Element) -> dict[str, int]:
    """{link: PyBullet's index}, that of the joint it is the child of; the base is -1."""
    children = [joint.find("child").attrib["link"] for joint in robot.findall("joint")]  # type: ignore[union-attr]
    return {link.attrib["name"]: -1 for link in robot.findall("link")} | {name: i for i, name in enumerate(children)}


def origin_pose(element: ET.Element) -> np.ndarray:
    """T [4, 4] that the <origin> of a joint, visual, collision or inertial says; the identity where it has none."""
    origin = element.find("origin")
    given = {} if origin is None else origin.attrib
    T = np.eye(4)
    T[:3, :3] = Rotation.from_euler("xyz", np.array(given.get("rpy", "0 0 0").split(), float)).as_matrix()
    T[:3, 3] = np.array(given.get("xyz", "0 0 0").split(), float)
    return T
