import contextlib
import errno
import hashlib
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from pydantic import ValidationError

from forceuq.data import download as module
from forceuq.data.download import Source, download
from forceuq.errors import DownloadError

CONTENT = np.random.default_rng(0).bytes(3_000_000)
SHA256, MD5 = hashlib.sha256(CONTENT).hexdigest(), hashlib.md5(CONTENT).hexdigest()
# Where a download that broke off half way goes on: after the last whole block.
RESUMED = f"bytes={len(CONTENT) // 2 // module._BLOCK * module._BLOCK}-"
FULL = {"size": len(CONTENT), "sha256": SHA256, "md5": MD5}


class Server:
    """Serves CONTENT; ``script`` holds what to do wrong, one entry a request."""

    def __init__(self):
        self.content, self.script, self.ranges, self.etag = CONTENT, [], True, '"v1"'
        self.seen = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    outer.answer(self)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, request):
        fault = self.script.pop(0) if self.script else None
        asked, condition = request.headers.get("Range"), request.headers.get("If-Range")
        self.seen.append((request.path, asked))
        if isinstance(fault, int):
            request.send_error(fault)
            return
        start = 0
        if asked and self.ranges and condition in (None, self.etag):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        body = self.content[start:]
        if start and not body:
            request.send_error(416)
            return
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(body)))
        if self.etag:
            request.send_header("ETag", self.etag)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        request.end_headers()
        if fault == "truncate":
            body = body[: len(body) // 2]
        elif fault == "corrupt":
            body = body[:1000] + bytes([body[1000] ^ 1]) + body[1001:]
        request.wfile.write(body)
        request.close_connection = True

    def url(self, name="file"):
        return f"http://127.0.0.1:{self.http.server_address[1]}/{name}"


@pytest.fixture
def server():
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def source(server, *names, **known):
    return Source(urls=[server.url(name) for name in names or ("file",)], filename="data.bin", **known)


def fetch(wanted, folder, **kwargs):
    download(wanted, folder / "out/raw", folder / "lock.json", **{"retries": 2, "backoff": 0.01, **kwargs})
    return (folder / "out/raw").read_bytes()


def left(folder):
    return sorted(p.name for p in (folder / "out").iterdir())


def test_a_file_is_fetched_whole(server, tmp_path):
    assert fetch(source(server, **FULL), tmp_path) == CONTENT
    assert left(tmp_path) == ["raw"]
    assert len(server.seen) == 1
    assert not (tmp_path / "lock.json").exists()


@pytest.mark.parametrize("known", [FULL, {}])
def test_a_truncated_answer_is_resumed(server, tmp_path, known):
    server.script = ["truncate"]
    assert fetch(source(server, **known), tmp_path) == CONTENT
    assert [asked for _, asked in server.seen] == [None, RESUMED]


def test_a_later_call_goes_on_where_an_earlier_one_stopped(server, tmp_path):
    server.script = ["truncate", 503]
    with pytest.raises(DownloadError, match="503"):
        fetch(source(server, **FULL), tmp_path, retries=1)
    assert left(tmp_path) == ["raw.partial", "raw.partial.json"]
    assert fetch(source(server, **FULL), tmp_path) == CONTENT
    assert server.seen[-1][1] == RESUMED
    assert left(tmp_path) == ["raw"]


@pytest.mark.parametrize("known", [FULL, {}])
def test_a_server_without_ranges_starts_over(server, tmp_path, known):
    server.script, server.ranges = ["truncate"], False
    assert fetch(source(server, **known), tmp_path) == CONTENT


def test_without_validator_and_checksum_it_starts_over(server, tmp_path):
    server.script, server.etag = ["truncate"], None
    assert fetch(source(server), tmp_path) == CONTENT
    assert [asked for _, asked in server.seen] == [None, None]


def test_a_file_that_changed_in_between_is_not_spliced(server, tmp_path):
    server.script = ["truncate", 404]
    with pytest.raises(DownloadError):
        fetch(source(server), tmp_path)
    server.content, server.etag = CONTENT[::-1], '"v2"'
    assert fetch(source(server), tmp_path) == CONTENT[::-1]


def test_a_corrupted_file_is_refused_and_thrown_away(server, tmp_path):
    server.script = ["corrupt"]
    with pytest.raises(DownloadError, match=rf"sha256 is \w+, not the published {SHA256}"):
        fetch(source(server, **FULL), tmp_path)
    assert left(tmp_path) == []


def test_md5_alone_is_enough_to_refuse(server, tmp_path):
    server.script = ["corrupt"]
    with pytest.raises(DownloadError, match=f"md5 is .* published {MD5}"):
        fetch(source(server, md5=MD5), tmp_path)


@pytest.mark.parametrize("first", ["corrupt", 404, 403])
def test_the_mirror_is_asked_at_once(server, tmp_path, first):
    server.script = [first]
    assert fetch(source(server, "first", "mirror", **FULL), tmp_path) == CONTENT
    assert [path for path, _ in server.seen] == ["/first", "/mirror"]


def test_a_mirror_goes_on_with_the_bytes_of_the_first(server, tmp_path):
    server.script = ["truncate", 404]
    assert fetch(source(server, "first", "mirror", **FULL), tmp_path) == CONTENT
    assert server.seen[-1] == ("/mirror", RESUMED)


@pytest.mark.parametrize("status", [503, 500, 429])
def test_a_busy_server_is_tried_again(server, tmp_path, status):
    server.script = [status, status]
    assert fetch(source(server, **FULL), tmp_path) == CONTENT
    assert len(server.seen) == 3


def test_waits_double(server, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(module.time, "sleep", waits.append)
    server.script = [503] * 4
    with pytest.raises(DownloadError, match="HTTP 503"):
        fetch(source(server, **FULL), tmp_path, retries=3, backoff=25)
    assert waits == [25, 50, 60]


def test_every_address_is_named_when_all_fail(server, tmp_path):
    server.script = [404, 410]
    with pytest.raises(DownloadError, match=r"/first: HTTP 404.*/mirror: HTTP 410"):
        fetch(source(server, "first", "mirror", **FULL), tmp_path)


def test_no_server_at_all(tmp_path, server):
    wanted = source(server)
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(DownloadError, match=r"data\.bin could not be fetched"):
        fetch(wanted, tmp_path, retries=1)


def test_a_wrong_size_is_refused(server, tmp_path):
    with pytest.raises(DownloadError, match="ended after 3000000 of 3000001"):
        fetch(source(server, size=len(CONTENT) + 1), tmp_path)
    with pytest.raises(DownloadError, match="not the published 1000"):
        fetch(source(server, size=1000), tmp_path)


def test_an_unknown_checksum_is_recorded_and_held_to(server, tmp_path):
    fetch(source(server), tmp_path)
    seen = json.loads((tmp_path / "lock.json").read_text())
    assert seen == {server.url(): {"sha256": SHA256, "size": len(CONTENT), "url": server.url()}}
    assert fetch(source(server), tmp_path) == CONTENT
    server.content, server.etag = CONTENT[::-1], '"v2"'
    with pytest.raises(DownloadError, match=f"first download had {SHA256}"):
        fetch(source(server), tmp_path)
    assert json.loads((tmp_path / "lock.json").read_text()) == seen
    assert left(tmp_path) == ["raw"]  # what was there before


def test_processes_do_not_lose_each_others_records(server, tmp_path):
    names = [f"n{i}" for i in range(8)]
    threads = [
        threading.Thread(
            target=download, args=(source(server, name), tmp_path / name, tmp_path / "lock.json"), kwargs={"retries": 0}
        )
        for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(json.loads((tmp_path / "lock.json").read_text())) == {server.url(name) for name in names}


def test_local_files(tmp_path, monkeypatch):
    (tmp_path / "some dir").mkdir()
    (tmp_path / "some dir/file").write_bytes(CONTENT)
    monkeypatch.chdir(tmp_path)
    for url in ("file:some%20dir/file", (tmp_path / "some dir/file").as_uri()):
        assert fetch(Source(urls=[url], filename="f", **FULL), tmp_path) == CONTENT
        assert left(tmp_path) == ["raw"]
    with pytest.raises(DownloadError, match=r"there is no file or folder .*some dir/other"):
        fetch(Source(urls=["file:some%20dir/other"], filename="f"), tmp_path)
    with pytest.raises(DownloadError, match="ended after"):
        fetch(Source(urls=["file:some%20dir/file"], filename="f", size=len(CONTENT) + 1), tmp_path)


def test_a_full_disk_is_an_error_that_says_so(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "file").write_bytes(CONTENT)
    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(DownloadError, match=r"data\.bin: no space left on the disk of .*out for 3000000 bytes"):
        fetch(Source(urls=[(tmp_path / "file").as_uri()], filename="data.bin", **FULL), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"urls": ["ftp://host/file"]}, "ftp://host/file"),
        ({"urls": ["/some/file"]}, "/some/file"),
        ({"urls": ["file://host/file"]}, "names no local file"),
        ({"urls": ["http:///file"]}, "names no host"),
        ({"urls": []}, "urls"),
        ({"filename": "../file"}, "not a plain file name"),
        ({"sha256": "PINNED"}, "sha256"),
        ({"sha": SHA256}, "sha"),
    ],
)
def test_a_source_is_checked(changes, message):
    with pytest.raises(ValidationError, match=message):
        Source(**{"urls": ["https://host/file"], "filename": "file", **changes})
