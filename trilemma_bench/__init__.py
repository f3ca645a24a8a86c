"""trilemma-bench: is this generative model good, does it cover the data, and is it fast?"""

from __future__ import annotations

__version__ = "0.1.0"
