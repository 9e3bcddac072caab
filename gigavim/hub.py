"""Weights on the Hugging Face hub; nothing is downloaded that was not asked for.

``HF_HUB_OFFLINE``, ``HF_HOME`` and access tokens are huggingface_hub's own, and honoured by it.
"""

from __future__ import annotations

from pathlib import Path

from gigavim.errors import ModelError

SCHEME = "hf://"
EXTRA = "the hub needs: pip install 'gigavim[hub]'"


def fetch(address: str) -> Path:
    """Return the local copy of a file on the hub, downloaded if there is none.

    Parameters
    ----------
    address
        ``hf://owner/repo/path/of/file``.

    Raises
    ------
    ModelError
        If the address is none, or the file is not there, not to be reached, or not to be had.
    """
    repo, file = _parts(address)
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HFValidationError
    except ModuleNotFoundError as error:
        raise ModelError(EXTRA) from error
    try:
        return Path(hf_hub_download(repo, file))
    except (OSError, EntryNotFoundError, HFValidationError) as error:
        # Its messages are paragraphs; the first line says what is wrong.
        fault = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise ModelError(
            f"{address} cannot be fetched ({fault}); check name and network, or download it by "
            "hand and pass the file"
        ) from error


def cached(address: str) -> Path | None:
    """Return the local copy of a file on the hub, if there is one; the network is left alone."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ModuleNotFoundError:
        return None
    found = try_to_load_from_cache(*_parts(address))
    return Path(found) if isinstance(found, str) else None


def _parts(address: str) -> tuple[str, str]:
    """Return repository and file."""
    owner, _, rest = address.removeprefix(SCHEME).partition("/")
    repo, _, file = rest.partition("/")
    if not (address.startswith(SCHEME) and owner and repo and file):
        raise ModelError(f"{address} is no file on the hub; write hf://owner/repository/file")
    return f"{owner}/{repo}", file
