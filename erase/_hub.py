"""Erasers on the Hugging Face Hub: one folder up, the files that are read down, every refusal one clear line."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download

from ..pipelines import PICKLES, asking_hub
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


def fetch(name: str, *, revision: str | None = None, token: str | None = None) -> Path:
    """The folder of an eraser on the Hub, in the local cache.

    Args:
        name: "owner/name".
        revision: a branch, a tag or a commit; by default the newest of the main branch.
        token: of an account that may read it; by default the one that is logged in.

    Raises:
        InputError: no such repository, revision or eraser, no access, or the Hub cannot be reached.
    """
    if name.count("/") != 1 or name.startswith((".", "/")) or name.endswith((".safetensors", *PICKLES)):
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


def clear(name: str, revision: str | None, *, verb: str = "fetch") -> AbstractContextManager[None]:
    """Turn what the Hub's client raises into one line."""
    lacks = f"is no eraser: expected {files.CONFIG_FILE} in it"
    return asking_hub(name, revision, what="eraser", lacks=lacks, verb=verb)
