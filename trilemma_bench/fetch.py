"""The one way in which a file comes from the network: quick to fail, checked, whole or not at all."""

from __future__ import annotations

import hashlib
import http.client
import os
import socket
import urllib.request
import uuid
from pathlib import Path

CONNECT_SECONDS = 5.0


class FetchError(OSError):
    """No network, or another file than the one expected. Callers say what to do instead."""


def fetch(url: str, folder: Path, *, sha256: str | None = None, md5: str | None = None) -> Path:
    """Download one file through torchvision, unless there is no network.

    Args:
        url: Where it is; the last part is its name.
        folder: Where it goes; made where it does not exist.
        sha256: Hex digest that it must have.
        md5: The same, for publishers that give only this.

    Returns:
        The path of the file.

    Raises:
        FetchError: No network, an error on the way, or another digest; one line.
    """
    name = url.rsplit("/", 1)[1]
    partial = folder / f"{name}.{uuid.uuid4().hex[:12]}.part"
    try:
        _require_network(url)
        from torchvision.datasets.utils import download_url

        folder.mkdir(parents=True, exist_ok=True)
        download_url(url, str(folder), filename=partial.name, md5=md5)
        found = file_sha256(partial)
        if sha256 is not None and found != sha256:
            raise FetchError(f"its SHA-256 begins {found[:8]}..., expected {sha256[:8]}...")
        os.replace(partial, folder / name)
    except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
        raise FetchError(f"{url} cannot be downloaded ({error})") from error
    finally:
        partial.unlink(missing_ok=True)
    return folder / name


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_network(url: str) -> None:
    # urllib waits for minutes where packets vanish; a proxy is trusted to answer.
    scheme, _, rest = url.partition("://")
    if scheme not in urllib.request.getproxies():
        address = (rest.split("/")[0], 443 if scheme == "https" else 80)
        socket.create_connection(address, CONNECT_SECONDS).close()
