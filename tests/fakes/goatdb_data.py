"""A data directory as GoatDB 0.5.1 left it: its logs and its settings.json, from the recorded vectors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

VECTORS = Path(__file__).parents[1] / "vectors"
DESCRIPTION: dict[str, Any] = json.loads((VECTORS / "jsonl/description.json").read_text())


def write_goatdb_data(top: Path) -> Path:
    """Write the data directory of the organization ``localhost`` below `top`, and return `top`."""
    for repository in DESCRIPTION["repositories"]:
        target = top / "localhost" / repository["path_in_data_dir"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(VECTORS / repository["file"], target)
    (top / "localhost/settings.json").write_text(DESCRIPTION["settings_json"])
    return top
