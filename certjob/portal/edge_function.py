"""The portal's Edge Function, as a folder that a Supabase project can deploy."""

import shutil
from pathlib import Path
from typing import Final

from certjob.errors import CertjobError, ConfigurationError

NAME: Final = "hlf-dynamics-sync"

CONFIGURATION: Final = f"""\
[functions.{NAME}]
verify_jwt = false
"""
"""For ``config.toml``: the function checks its own key, and certjob has no user's JWT."""


def copy_edge_function(folder: Path) -> Path:
    """Copy the function, without its tests, into a new folder below ``folder``, and return that.

    Raises ConfigurationError if it exists: nothing is overwritten.
    """
    package = Path(__file__).parents[1]
    inside = package / "edge_function"
    source = inside if inside.is_dir() else package.parent / "supabase/functions" / NAME
    target = folder / NAME
    try:
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("tests"))
    except FileExistsError:
        message = f"{target} exists already, and nothing is overwritten"
        raise ConfigurationError(message, next_step="remove it, then run this again") from None
    except (OSError, shutil.Error) as error:
        reason = getattr(error, "strerror", None) or "not every file could be copied"
        message = f"{target} cannot be written ({reason})"
        raise CertjobError(message, next_step="remove what is there, and name a folder that can be written") from error
    return target
