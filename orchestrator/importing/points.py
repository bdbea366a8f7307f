"""Point clouds and meshes: NumPy and trimesh read, the result is a fixed number of points."""

import io
import math
import zipfile
from dataclasses import dataclass
from typing import Any, BinaryIO, ClassVar

import numpy as np
import numpy.typing as npt
import trimesh

from orchestrator.importing.kinds import Broken, at_least, check_decoded, check_sample_bytes

Points = npt.NDArray[np.float64]

_NAMES = ("points", "xyz", "pos", "vertices")
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(frozen=True)
class PointClouds:
    """Samples (points, 3) float32, centred on their mean, scaled to reach the unit sphere.

    A mesh is sampled evenly over its surface; of a cloud that has more points some are drawn, of
    one that has fewer some are drawn again. All draws are seeded by the file's path.
    """

    NAME: ClassVar[str] = "points"
    SUFFIXES: ClassVar[frozenset[str]] = frozenset({".npy", ".npz", ".ply", ".off"})
    VERSION: ClassVar[int] = 1

    points: int = 1024

    def __post_init__(self) -> None:
        at_least("--points", self.points, 1)
        check_sample_bytes(self.typical_bytes, f"--points {self.points}")

    def declared(self) -> dict[str, Any]:
        """See `Kind`."""
        return {
            "modality": "point",
            "dtype": "float32",
            "shape": [self.points, 3],
            "layout": "x,y,z, centred, unit sphere",
        }

    @property
    def typical_bytes(self) -> int:
        """See `Kind`."""
        return 12 * self.points

    def sample(self, content: bytes, suffix: str, seed: int) -> bytes:
        """See `Kind`."""
        rng = np.random.default_rng(seed)
        if suffix in (".npy", ".npz"):
            cloud = _array(content)
        else:
            shape = trimesh.load(
                io.BytesIO(content), file_type=suffix[1:], process=False, skip_materials=True
            )
            if isinstance(shape, trimesh.Trimesh) and len(shape.faces):
                cloud = self._surface(shape, seed)
            else:
                cloud = np.asarray(shape.vertices, dtype=np.float64)
        _check(cloud)
        return _in_unit_sphere(self._chosen(cloud, rng)).astype("<f4").tobytes()

    def _surface(self, mesh: trimesh.Trimesh, seed: int) -> Points:
        if not np.isfinite(mesh.vertices).all():
            raise Broken("holds NaN or infinity")
        if not mesh.area > 0:
            raise Broken("a mesh without any surface")
        found, _ = trimesh.sample.sample_surface(mesh, self.points, seed=seed)
        return np.asarray(found, dtype=np.float64)

    def _chosen(self, cloud: Points, rng: np.random.Generator) -> Points:
        if len(cloud) == self.points:
            return cloud
        if len(cloud) > self.points:
            return cloud[rng.permutation(len(cloud))[: self.points]]
        again = rng.integers(0, len(cloud), self.points - len(cloud))
        return np.concatenate([cloud, cloud[again]])


def _array(content: bytes) -> Points:
    """The points of an NPY or NPZ file; nothing is unpacked to a disk, and nothing unpickled."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return _checked_array(io.BytesIO(content), len(content))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {one.filename.removesuffix(".npy"): one for one in archive.infolist()}
        names = [name for name in _NAMES if name in members] or list(members)
        if len(names) != 1:
            raise Broken(
                f"arrays {', '.join(members) or '(none)'}: one of them is named `points`, or it "
                "is the only one"
            )
        member = members[names[0]]
        check_decoded(member.file_size)
        with archive.open(member) as file:  # gives no more bytes than that
            return _checked_array(io.BytesIO(file.read()), member.file_size)


def _checked_array(file: BinaryIO, size: int) -> Points:
    """The array in an NPY file of `size` bytes, if it is as large as its header says."""
    version = np.lib.format.read_magic(file)
    read_header = _HEADERS.get(version)
    if read_header is None:
        raise Broken(f"an NPY file of version {version}; versions 1.0 and 2.0 are read")
    shape, _, dtype = read_header(file)
    told = math.prod(shape) * dtype.itemsize
    if told > size - file.tell():
        raise Broken(f"an array that says it is of {told:,} bytes, and holds fewer")
    check_decoded(math.prod(shape) * np.dtype(np.float64).itemsize)
    file.seek(0)
    return np.asarray(np.load(file, allow_pickle=False), dtype=np.float64)


def _check(cloud: Points) -> None:
    if cloud.ndim != 2 or cloud.shape[1] < 3:
        raise Broken(f"an array (N, 3), or with more columns behind, not {cloud.shape}")
    if not len(cloud):
        raise Broken("holds no points")
    if not np.isfinite(cloud[:, :3]).all():
        raise Broken("holds NaN or infinity")


def _in_unit_sphere(cloud: Points) -> Points:
    centred = cloud[:, :3] - cloud[:, :3].mean(axis=0)
    radius = np.linalg.norm(centred, axis=1).max()
    if not radius > 0:
        raise Broken("all its points are one")
    return np.asarray(centred / radius)
