"""Looks at gigapixel images and their results in napari, and asks them questions."""

import sys
from pathlib import Path

# PyTorch imports Triton when it likes, and Triton's LLVM ends a process in which Mesa's has drawn
# a window. Without a GPU there is nothing that Triton could do.
if sys.platform == "linux" and not Path("/dev/nvidiactl").exists():
    sys.modules.setdefault("triton", None)  # type: ignore[arg-type]
