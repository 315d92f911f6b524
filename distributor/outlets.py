"""Outlets: which channels are installed, which outlets are configured, and in what state each one is."""

from pathlib import Path, PurePosixPath

from distributor.errors import Unusable


def asset(name: str) -> Path:
    """The file ``name`` ("fonts/…") of the product's assets: of the wheel, else of the source tree.

    Raises:
        Unusable: ``asset_missing``: the installation is incomplete, or the name leaves the assets.
    """
    package = Path(__file__).resolve().parent
    inside = "\x00" not in name and ".." not in PurePosixPath(name).parts and not PurePosixPath(name).is_absolute()
    for root in (package / "_assets", package.parent / "assets"):
        if inside and (root / name).exists():
            return root / name
    raise Unusable("asset_missing", name=name)
