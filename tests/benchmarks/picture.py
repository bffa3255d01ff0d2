"""The README's picture: the example of `python -m pipelines.restore`, its four pictures in a row.

python -m pipelines.restore
python -m tests.benchmarks.picture
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipelines.restore.config import EXAMPLE
from pipelines.restore.example import KEY
from trainers.recipes.pictures import grid

PICTURE = Path(__file__).parents[1] / "fixtures" / "readme.png"
COLUMNS = {
    "LQ": f"lq/{KEY}.png",
    "posterior mean": f"restored/{KEY}.posterior-mean.png",
    "restored": f"restored/{KEY}.png",
    "HQ": f"hq/{KEY}.png",
}


def main() -> None:
    """Write the picture."""
    pixels = {
        title: torch.from_numpy(np.array(Image.open(Path(EXAMPLE) / name).convert("RGB")))
        for title, name in COLUMNS.items()
    }
    made = grid({title: some.permute(2, 0, 1)[None] for title, some in pixels.items()}, "HQ", [KEY])
    made.save(PICTURE, optimize=True)
    sys.stdout.write(f"{PICTURE}: {made.width} x {made.height} pixels\n")


if __name__ == "__main__":
    main()
