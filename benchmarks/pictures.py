"""Write the pictures of the documents. It needs matplotlib (extra `page`)."""

from pathlib import Path
from typing import Any


def save_picture(figure: Any, path: Path) -> None:
    """Write a figure, and close it. The same figure gives the same SVG file each time.

    Args:
        figure: of matplotlib.
        path: of the picture; its folder is made. The suffix says the format.

    Raises:
        OSError: it cannot be written.
    """
    from matplotlib import pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    plt.rcParams["svg.hashsalt"] = "foley"
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
