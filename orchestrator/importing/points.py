"""Point clouds and meshes: NumPy and trimesh read, the result is a fixed number of points."""

import io
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import trimesh

from orchestrator.importing.kinds import Broken, at_least, check_sample_bytes

Points = npt.NDArray[np.float64]

_NAMES = ("points", "xyz", "pos", "vertices")


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
            shape = trimesh.load(io.BytesIO(content), file_type=suffix[1:], process=False)
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
    loaded = np.load(io.BytesIO(content), allow_pickle=False)
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        return np.asarray(loaded, dtype=np.float64)
    names = [name for name in _NAMES if name in loaded.files] or loaded.files
    if len(names) != 1:
        raise Broken(
            f"arrays {', '.join(loaded.files) or '(none)'}: one of them is named `points`, or it "
            "is the only one"
        )
    return np.asarray(loaded[names[0]], dtype=np.float64)


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
