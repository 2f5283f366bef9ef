"""Is OpenMMLab there? Whether it runs, tools/try_openmmlab.py tries."""

from __future__ import annotations

import importlib.util
import warnings

from provscale.errors import UserError

MODULES = ("mmengine", "mmcv", "mmpose", "mmaction", "xtcocotools")
INSTALL = "bash tools/install_openmmlab.sh PATH/OF/python"


def missing_modules() -> list[str]:
    """Those of `MODULES` that are not installed; nothing is imported."""
    return [name for name in MODULES if importlib.util.find_spec(name) is None]


def require_openmmlab(purpose: str) -> None:
    """Raises UserError when a module is missing; `purpose` (a config key and value, or a tool) begins the message."""
    if missing := missing_modules():
        raise UserError(f"{purpose}: needs OpenMMLab ({', '.join(missing)} not installed); run {INSTALL}")
    # They warn about optional parts (compiled operations, other detectors) that are not used here.
    for module in ("mmcv", "mmengine", "mmpose", "mmaction"):
        warnings.filterwarnings("ignore", module=rf"{module}\.")
