"""Redraw docs/images from a finished demo: python docs/draw_images.py demo-study."""

import base64
import io
import re
import sys
from pathlib import Path

from PIL import Image

HEIGHT_PX = 620
COLOURS = 160  # a palette of this size keeps H&E as it looks, at a third of the bytes


def main(study: Path) -> None:
    """Put the crop with its nuclei beside the gene maps of the newest report."""
    report = max(study.glob("runs/*/report.html"), key=lambda path: path.stat().st_mtime)
    inlined = re.findall(r'data:image/png;base64,([^"]+)', report.read_text())
    _, _, crop, genes = (Image.open(io.BytesIO(base64.b64decode(text))) for text in inlined[:4])
    parts = [image.convert("RGB") for image in (crop, genes)]
    scaled = [part.resize((part.width * HEIGHT_PX // part.height, HEIGHT_PX)) for part in parts]
    page = Image.new("RGB", (sum(part.width for part in scaled) + 16, HEIGHT_PX), "white")
    page.paste(scaled[0], (0, 0))
    page.paste(scaled[1], (scaled[0].width + 16, 0))
    out = Path(__file__).parent / "images" / "nuclei.png"
    page.quantize(COLOURS).save(out, optimize=True)
    print(out, out.stat().st_size // 1024, "KiB", page.size)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
