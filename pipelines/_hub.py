"""What the Hub's client raises, as one line that says what to do; and a pipeline's index, asked for that way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..prompts import InputError, first_line

INDEX = "model_index.json"
LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


def pipeline_index(source: str | Path, revision: str | None = None) -> dict[str, Any]:
    """The `model_index.json` of a pipeline's folder or Hub id.

    Raises:
        InputError: of a Hub id, no such repository or revision, no pipeline, no access, or the Hub cannot be reached.
        OSError: of a folder, it is missing or damaged.
    """
    if not Path(source).is_dir():
        with asking_hub(str(source), revision, what="model", lacks=f"is no diffusers pipeline: expected {INDEX} in it"):
            hf_hub_download(str(source), INDEX, revision=revision)
    return dict(DiffusionPipeline.load_config(source, revision=revision))


@contextmanager
def asking_hub(name: str, revision: str | None, *, what: str, lacks: str, verb: str = "fetch") -> Iterator[None]:
    """Turn what the Hub's client raises into one line.

    Args:
        name: the repository.
        revision: that was asked for.
        what: what is looked for there: "model", "eraser".
        lacks: what is wrong with a repository without the file that was asked for: "is no eraser: expected ...".
        verb: what is done with it; "fetch" where a folder or a file of this computer could have been meant too.

    Raises:
        InputError: anything of that went wrong.
    """
    full = f"{name} (revision {revision!r})" if revision else name
    try:
        yield
    except LocalEntryNotFoundError as error:
        raise InputError(_reason(full, verb, error)) from error
    except GatedRepoError as error:
        raise InputError(f"cannot {verb} {name}: accept its terms on the Hub first, then {LOGIN}") from error
    except RepositoryNotFoundError as error:
        at = "no folder or file here, and " if verb == "fetch" else ""
        raise InputError(
            f"no {what} at {name}: {at}no such repository on the Hub, or a private one: check the name; {LOGIN}"
        ) from error
    except RevisionNotFoundError as error:
        raise InputError(f"{name} has no revision {revision!r}: name a branch, a tag or a commit of it") from error
    except EntryNotFoundError as error:
        raise InputError(f"{name} on the Hub {lacks}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status == 401:
            raise InputError(f"cannot {verb} {name}: the Hub knows no such login: {LOGIN}") from error
        if status == 403:
            raise InputError(f"cannot {verb} {name}: your token has no right to: {LOGIN} with one that has") from error
        raise InputError(_reason(full, verb, error)) from error
    except HFValidationError as error:
        raise InputError(f"{name!r} is no Hub id (owner/name): {_first(error)}") from error
    except OSError as error:  # offline, no connection, no token where one is asked for, a full disk
        raise InputError(_reason(full, verb, error)) from error


def _reason(name: str, verb: str, error: Exception) -> str:
    here = "no folder or file here or in the cache, and " if verb == "fetch" else ""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OfflineModeIsEnabled):
            return f"cannot {verb} {name}: {here}HF_HUB_OFFLINE forbids to ask the Hub: unset it"
        cause = cause.__cause__
    hint = "check the connection and HF_ENDPOINT, or try again later"
    return f"cannot {verb} {name}: {here}the Hub cannot be asked ({_first(error)}): {hint}"


def _first(error: Exception) -> str:
    return first_line(error).rstrip(".:")
