"""The Panda's description (URDF and meshes), which pybullet_data ships: found, and checked to be whole, before it is used."""

from __future__ import annotations

import importlib.util
import xml.etree.ElementTree as ET
from functools import cache
from pathlib import Path


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
