"""Erasers on the Hugging Face Hub: one folder up, the files that are read down, every refusal one clear line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
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

from ..prompts import InputError
from . import _files as files

READ = (
    files.CONFIG_FILE,
    "README.md",
    files.LORA_FILE,
    files.DELTA_FILE,
    files.HYPER_CONFIG,
    files.HYPER_FILE,
    "scheduler/scheduler_config.json",
)
"""All that is ever fetched: no pickle, no code, and nothing of a repository that holds no eraser."""
LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


def fetch(name: str, *, revision: str | None = None, token: str | None = None) -> Path:
    """The folder of an eraser on the Hub, in the local cache.

    Args:
        name: "owner/name".
        revision: a branch, a tag or a commit; by default the newest of the main branch.
        token: of an account that may read it; by default the one that is logged in.

    Raises:
        InputError: no such repository, revision or eraser, no access, or the Hub cannot be reached.
    """
    if name.count("/") != 1 or name.startswith((".", "/")) or name.endswith((".safetensors", *files.PICKLES)):
        raise InputError(f"no eraser at {name}: expected a folder, a .safetensors file or a Hub id (owner/name)")
    with clear(name, revision):
        # the record first: a base model's repository is not fetched only to find that it is no eraser
        config = Path(hf_hub_download(name, files.CONFIG_FILE, revision=revision, token=token))
        commit = config.parent.name
        return Path(snapshot_download(name, allow_patterns=list(READ), revision=commit, token=token))


def push(folder: Path, repo: str, *, private: bool, token: str | None, revision: str | None) -> str:
    """Upload a folder as one commit and return its address.

    Args:
        folder: what to upload.
        repo: "owner/name"; made if it is not there.
        private: make a new one private, and refuse one that is not.
        token: of an account that may write it; by default the one that is logged in.
        revision: a branch, made if it is not there; by default the main one.

    Raises:
        InputError: not logged in, no right to write there, a public repository where a private one was asked for, or
            the Hub cannot be reached.
    """
    if repo.count("/") != 1:
        raise InputError(f"expected a Hub id (owner/name) to push to, got {repo!r}")
    api = HfApi(token=token)
    with clear(repo, revision, verb="push to"):
        api.create_repo(repo, private=private, exist_ok=True)  # of one that is there, `private` is ignored
        if private and not api.repo_info(repo).private:
            raise InputError(
                f"{repo} is on the Hub already and everybody can read it, --private is for a new repository: choose "
                "another name, make it private on the Hub first, or leave out --private"
            )
        if revision:
            api.create_branch(repo, branch=revision, exist_ok=True)
        info = api.upload_folder(
            repo_id=repo, folder_path=folder, revision=revision, commit_message="Add a concept eraser"
        )
    return str(info.commit_url)


@contextmanager
def clear(name: str, revision: str | None, *, verb: str = "fetch") -> Iterator[None]:
    """Turn what the Hub's client raises into one line."""
    try:
        yield
    except LocalEntryNotFoundError as error:
        raise InputError(_reason(name, verb, error)) from error
    except GatedRepoError as error:
        raise InputError(f"cannot {verb} {name}: accept its terms on the Hub first, then {LOGIN}") from error
    except RepositoryNotFoundError as error:
        at = "no folder or file here, and " if verb == "fetch" else ""
        raise InputError(
            f"no eraser at {name}: {at}no such repository on the Hub, or a private one: check the name; {LOGIN}"
        ) from error
    except RevisionNotFoundError as error:
        raise InputError(f"{name} has no revision {revision!r}: name a branch, a tag or a commit of it") from error
    except EntryNotFoundError as error:
        raise InputError(f"{name} on the Hub is no eraser: expected {files.CONFIG_FILE} in it") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status == 401:
            raise InputError(f"cannot {verb} {name}: the Hub knows no such login: {LOGIN}") from error
        if status == 403:
            raise InputError(f"cannot {verb} {name}: your token has no right to: {LOGIN} with one that has") from error
        raise InputError(_reason(name, verb, error)) from error
    except HFValidationError as error:
        raise InputError(f"{name!r} is no Hub id (owner/name): {_first(error)}") from error
    except OSError as error:  # offline, no connection, no token where one is asked for, a full disk
        raise InputError(_reason(name, verb, error)) from error


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
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
