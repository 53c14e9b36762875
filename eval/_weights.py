"""Weights of other people's networks: safetensors, or torch files read with `weights_only`; one clear line if not."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..prompts import InputError, first_line


def torch_weights(net: nn.Module, url: str, path: str | Path, what: str) -> None:
    """Load a network's weights from a file or, where none is named, from a release on the net: downloaded once into
    torch's cache and checked against the hash in its name.

    Raises:
        InputError: no file, a damaged one, another network's, or no way to download it.
    """
    state = read_state(Path(path), what) if str(path) else _download(url, what)
    own = net.state_dict()
    lacking = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    wrong = [k for k in own if k in state and state[k].shape != own[k].shape]
    if lacking or wrong:
        raise InputError(
            f"{path or url} does not hold {what}: {len(lacking)} of {len(own)} tensors are missing and {len(wrong)} "
            f"have another shape, such as {(lacking + wrong)[0]}"
        )
    net.load_state_dict({k: v for k, v in state.items() if k in own}, strict=False)


def read_state(path: Path, what: str) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a torch file, read with `weights_only`.

    Raises:
        InputError: missing, damaged, or holding more than tensors.
    """
    if not path.is_file():
        raise InputError(f"{what}: no such file {path}; name a .safetensors or .pth file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        raise InputError(f"{what}: {path} is no file of plain tensors ({first_line(error)})") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"{what}: {path} holds {type(state).__name__}, expected a dictionary of tensors")
    return state


def _download(url: str, what: str) -> dict[str, Tensor]:
    try:
        return torch.hub.load_state_dict_from_url(  # type: ignore[no-any-return]
            url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(
            f"{what} cannot be downloaded from {url} ({first_line(error)}): fetch the file elsewhere and name it after "
            "a colon, for example inception-clean:FILE"
        ) from error
