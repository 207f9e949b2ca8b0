"""What is kept with a result, so that one finds out later how it came about."""

import subprocess
from datetime import datetime, timezone
from pathlib import Path


def current_commit():
    """Commit of the checkout that this runs from, or 'unknown' outside one."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        result = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return result.stdout.strip() or "unknown"


def today():
    """The date, as ISO 8601 writes it."""
    return datetime.now(timezone.utc).date().isoformat()
