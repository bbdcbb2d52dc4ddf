"""Fetch published files: resumed, retried, from mirrors, and held to their size and checksum."""

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from forceuq.data.archives import pack_folder
from forceuq.errors import DataError, DownloadError
from forceuq.files import file_digest, read_json, write_json

_BLOCK = 2**16  # bytes; up to one block is lost where a connection breaks
_TIMEOUT = (30.0, 120.0)  # s, to connect and between bytes
_LONGEST_WAIT = 60.0  # s
_TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)


class Source(BaseModel):
    """A published file. Where no checksum is known, the first download's is recorded and held to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    urls: tuple[str, ...] = Field(
        min_length=1,
        description="Addresses of the same bytes, tried in order: http, https, or file (may be relative;"
        " a folder is packed into a tar archive).",
    )
    filename: str = Field(min_length=1, description="The publisher's name of the file.")
    size: int | None = Field(default=None, gt=0, description="Bytes.")
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = Field(default=None, description="SHA-256, hex.")
    md5: Annotated[str, Field(pattern="^[0-9a-f]{32}$")] | None = Field(default=None, description="MD5, hex.")
    doi: str | None = Field(default=None, description="DOI of the data.")
    licence: str | None = Field(default=None, description="Licence of the data.")

    @field_validator("urls")
    @classmethod
    def _schemes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for url in value:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https", "file"):
                raise ValueError(f"{url!r} is not an address that starts with http:, https: or file:")
            if parts.scheme == "file" and (parts.netloc not in ("", "localhost") or not parts.path):
                raise ValueError(f"{url!r} names no local file; write file:some/path or file:///some/path")
            if parts.scheme != "file" and not parts.hostname:
                raise ValueError(f"{url!r} names no host")
        return value

    @field_validator("filename")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if "/" in value or "\\" in value or value in (".", ".."):
            raise ValueError(f"{value!r} is not a plain file name")
        return value

    @property
    def content(self) -> dict[str, Any]:
        """What decides the bytes: the checksum, or where none is published the first address and the size.

        Mirrors, DOI and licence say nothing of them, so that one more makes no cache anew.
        """
        if self.sha256 is not None:
            return {"filename": self.filename, "sha256": self.sha256}
        if self.md5 is not None:
            return {"filename": self.filename, "md5": self.md5}
        return {"filename": self.filename, "url": self.urls[0], "size": self.size}


class _Failure(Exception):  # noqa: N818 - never leaves this module
    """One address failed; ``again`` where another try at it may succeed."""

    def __init__(self, message: str, *, again: bool) -> None:
        super().__init__(message)
        self.again = again


def download(source: Source, output: Path, lock: Path, retries: int = 5, *, backoff: float = 1.0) -> str:
    """Fetch a file and return the address that gave it; ``output`` appears when it is whole and verified.

    The bytes gather in ``<output>.partial``, from which a later call goes on where the server allows it. An
    unknown SHA-256 is recorded in ``lock`` (JSON, by first address) and every later download is held to it.

    Args:
        source: addresses, size and checksums.
        output: the file to write.
        lock: JSON file of the checksums that were seen; several processes may share it.
        retries: further tries at each address, for failures that may pass.
        backoff: wait before the first of them, s; doubled each time, at most a minute.

    Raises:
        DownloadError: no address gave the right bytes (with the reason for each), or the disk is full.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(f"{output}.partial")
    note = Path(f"{partial}.json")
    reasons = []
    try:
        for url in source.urls:
            for attempt in range(retries + 1):
                try:
                    _fetch(source, url, partial, note)
                    digest = _verify(source, partial)
                    _hold_to_lock(source, url, digest, partial, lock)
                except _Failure as failure:
                    if not failure.again or attempt == retries:
                        reasons.append(f"{url}: {failure}")
                        break
                    time.sleep(min(backoff * 2**attempt, _LONGEST_WAIT))
                else:
                    partial.replace(output)
                    note.unlink(missing_ok=True)
                    return url
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            size = f"{source.size} bytes" if source.size else "the file"
            raise DownloadError(
                f"{source.filename}: no space left on the disk of {output.parent} for {size}; free some and run "
                "again (what was fetched is kept)"
            ) from error
        raise DownloadError(f"{source.filename}: {error}") from error
    raise DownloadError(
        f"{source.filename} could not be fetched. " + "; ".join(reasons) + ". Check the network, or fetch it by hand "
        "and give its path as an address: file:///path"
    )


def _fetch(source: Source, url: str, partial: Path, note: Path) -> None:
    if urlsplit(url).scheme == "file":
        _copy(url, partial, note)
    else:
        _request(source, url, partial, note)
    if source.size is not None and partial.stat().st_size < source.size:
        raise _Failure(f"ended after {partial.stat().st_size} of {source.size} bytes", again=url[:5] != "file:")


def _copy(url: str, partial: Path, note: Path) -> None:
    path = Path(unquote(urlsplit(url).path))
    note.unlink(missing_ok=True)
    if path.is_dir():
        try:
            pack_folder(path, partial)
        except DataError as error:
            raise _Failure(str(error), again=False) from None
        return
    if not path.is_file():
        raise _Failure(f"there is no file or folder {path.resolve()}", again=False)
    with path.open("rb") as raw, partial.open("wb") as handle:
        shutil.copyfileobj(raw, handle, _BLOCK)
        _sync(handle)


def _request(source: Source, url: str, partial: Path, note: Path) -> None:
    import requests
    from tqdm import tqdm

    start = partial.stat().st_size if partial.exists() else 0
    if start and start == source.size:
        return  # whole already: the last run stopped before the check
    headers = {"Accept-Encoding": "identity"}
    if start:
        validator = _validator(url, note)
        if validator is None and source.sha256 is None and source.md5 is None:
            start = 0  # nothing would tell whether the rest belongs to the same file
        else:
            headers["Range"] = f"bytes={start}-"
            if validator is not None:
                headers["If-Range"] = validator
    try:
        with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
            if response.status_code == 416:
                _forget(partial, note)
                raise _Failure("the server has no more bytes than an earlier, unfinished download", again=True)
            if response.status_code not in (200, 206):
                raise _Failure(
                    f"HTTP {response.status_code} {response.reason}", again=response.status_code in _TRY_AGAIN
                )
            if response.status_code == 206:
                if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                    _forget(partial, note)
                    raise _Failure("the server sent another range than the one asked for", again=True)
            else:
                start = 0
                # A weak ETag does not promise the same bytes (RFC 9110, 13.1.5).
                etag = response.headers.get("ETag", "")
                strong = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")
                # Emptied first: a note must never stand beside bytes of another file.
                partial.write_bytes(b"")
                write_json(note, {"url": url, "validator": strong})
            length = response.headers.get("Content-Length")
            total = start + int(length) if length else source.size
            with (
                partial.open("ab" if start else "wb") as handle,
                tqdm(
                    total=total, initial=start, unit="B", unit_scale=True, desc=source.filename, mininterval=2
                ) as progress,
            ):
                for block in response.iter_content(_BLOCK):
                    handle.write(block)
                    progress.update(len(block))
                    if source.size is not None and handle.tell() > source.size:
                        break  # not the file; do not fill the disk with it
                _sync(handle)
    except requests.RequestException as error:
        raise _Failure(str(error), again=True) from error


def _validator(url: str, note: Path) -> str | None:
    try:
        seen = read_json(note)
    except (OSError, ValueError):
        return None
    return seen.get("validator") if isinstance(seen, dict) and seen.get("url") == url else None


def _verify(source: Source, partial: Path) -> str:
    """Return the SHA-256 of a download whose size and checksums are right; throw it away where they are not."""
    found: dict[str, Any] = {"size": partial.stat().st_size, "sha256": file_digest(partial)}
    if source.md5 is not None:
        found["md5"] = file_digest(partial, "md5")
    for name, value in found.items():
        wanted = getattr(source, name)
        if wanted is not None and value != wanted:
            _forget(partial, Path(f"{partial}.json"))
            raise _Failure(f"{name} is {value}, not the published {wanted}", again=False)
    return str(found["sha256"])


def _hold_to_lock(source: Source, url: str, digest: str, partial: Path, lock: Path) -> None:
    if source.sha256 is not None:
        return
    key = source.urls[0]
    with _locked(lock):
        seen = read_json(lock) if lock.exists() else {}
        if key not in seen:
            write_json(lock, {**seen, key: {"sha256": digest, "size": partial.stat().st_size, "url": url}})
        elif seen[key]["sha256"] != digest:
            _forget(partial, Path(f"{partial}.json"))
            raise DownloadError(
                f"{source.filename}: {url} now has SHA-256 {digest}, but the first download had {seen[key]['sha256']} "
                f"({lock}). If the publisher changed the file on purpose, remove its entry there and run again"
            )


@contextmanager
def _locked(lock: Path) -> Iterator[None]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    # A file beside it: the lock file itself is replaced at every change.
    with Path(f"{lock}.guard").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        yield


def _forget(partial: Path, note: Path) -> None:
    partial.unlink(missing_ok=True)
    note.unlink(missing_ok=True)


def _sync(handle: Any) -> None:
    handle.flush()
    os.fsync(handle.fileno())
