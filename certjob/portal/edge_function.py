"""Copy the portal's Edge Function into a Supabase project."""

import shutil
from pathlib import Path
from typing import Final

from certjob.errors import CertjobError, ConfigurationError

NAME: Final = "hlf-dynamics-sync"

CONFIGURATION: Final = f"""\
[functions.{NAME}]
verify_jwt = false
"""
"""Lines for ``config.toml``. Supabase must not ask for a JWT, because the function checks its own key."""


def copy_edge_function(folder: Path) -> Path:
    """Copy the function without its tests into a new folder below ``folder``, and return that folder.

    Raises ConfigurationError if the new folder exists already, and CertjobError if it cannot be written.
    """
    package = Path(__file__).parents[1]
    inside = package / "edge_function"
    source = inside if inside.is_dir() else package.parent / "supabase/functions" / NAME
    target = folder / NAME
    try:
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("tests"))
    except FileExistsError:
        message = f"{target} exists already"
        raise ConfigurationError(message, next_step="remove it, then run the command again") from None
    except (OSError, shutil.Error) as error:
        reason = getattr(error, "strerror", None) or "a file could not be copied"
        message = f"{target} cannot be written ({reason})"
        raise CertjobError(message, next_step=f"remove {target}, then name a folder that can be written") from error
    return target
