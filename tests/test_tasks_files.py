"""Files are found where the user says, or downloaded once, and never used with a wrong checksum."""

import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from innerloop.errors import DataError
from innerloop.tasks import files
from innerloop.tasks.files import KnownFile, cache_folder, data_folder, downloaded, local_file

CONTENT = b"drawings"
FILE = KnownFile("images.zip", hashlib.md5(CONTENT).hexdigest())
SAME = KnownFile("images.npz", hashlib.md5(b"the same drawings").hexdigest())


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """No test reads or writes outside its own folder."""
    monkeypatch.setenv("INNERLOOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("INNERLOOP_DATA", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "omniglot").mkdir()
    return tmp_path / "omniglot"


# --- in a folder --------------------------------------------------------------------------------


def test_no_folder_is_named_by_default(monkeypatch):
    assert data_folder(None, "omniglot") is None
    monkeypatch.setenv("INNERLOOP_DATA", "")
    assert data_folder(None, "omniglot") is None


def test_the_folder_is_the_argument_or_the_environments(monkeypatch, tmp_path, folder):
    (tmp_path / "other").mkdir()
    monkeypatch.setenv("INNERLOOP_DATA", str(tmp_path / "other"))
    assert data_folder(None, "omniglot") == tmp_path / "other"
    assert data_folder(str(folder), "omniglot") == folder


def test_the_folder_may_be_the_one_above(tmp_path, folder):
    assert data_folder(tmp_path, "omniglot") == folder
    assert data_folder(folder, "omniglot") == folder


def test_an_unknown_folder_is_refused_with_the_cure(monkeypatch, tmp_path):
    with pytest.raises(
        DataError, match=r"elsewhere \(from data=\).*a folder with the omniglot files"
    ):
        data_folder(tmp_path / "elsewhere", "omniglot")
    monkeypatch.setenv("INNERLOOP_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"nowhere \(from INNERLOOP_DATA\)"):
        data_folder(None, "omniglot")


def test_the_first_of_equivalent_files_that_is_there_is_taken(folder):
    (folder / SAME.name).write_bytes(b"the same drawings")
    assert local_file((FILE, SAME), folder) == (SAME, folder / SAME.name)
    (folder / FILE.name).write_bytes(CONTENT)
    assert local_file((FILE, SAME), folder) == (FILE, folder / FILE.name)


def test_a_missing_file_is_named_with_the_cure(folder):
    with pytest.raises(DataError, match=r"images.zip or images.npz is missing") as error:
        local_file((FILE, SAME), folder)
    assert f"no such file in {folder}" in error.value.got


def test_a_corrupt_file_is_named_with_both_checksums_and_the_cure(folder):
    path = folder / FILE.name
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(DataError) as error:
        local_file((FILE,), folder)
    assert str(path) in error.value.problem
    assert hashlib.md5(CONTENT[:-1]).hexdigest() in error.value.got
    assert FILE.md5 in error.value.expected


# --- downloaded ---------------------------------------------------------------------------------


class Server:
    """Serves `folder` on a loopback address, and remembers what was asked for."""

    def __init__(self, folder):
        self.requests = []
        server = self

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, format, *args):
                server.requests.append(args[0])

        handler = partial(Handler, directory=str(folder))
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/"


@pytest.fixture
def upstream(folder, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (folder / FILE.name).write_bytes(CONTENT)
    server = Server(folder)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.http.shutdown()
    thread.join()
    server.http.server_close()


def read(base_url):
    with downloaded(FILE, base_url) as path:
        return path.read_bytes()


def test_a_file_is_downloaded_once(upstream, cache):
    assert read(upstream.url) == CONTENT
    assert read(upstream.url) == CONTENT
    assert len(upstream.requests) == 1
    assert [file.name for file in cache.iterdir()] == [FILE.name]


def test_nothing_is_downloaded_before_it_is_needed(upstream):
    downloaded(FILE, upstream.url)
    assert upstream.requests == []


def test_another_checksum_is_refused_and_not_kept(upstream, folder, cache):
    (folder / FILE.name).write_bytes(CONTENT + b"!")
    with pytest.raises(DataError, match=r"images.zip could not be downloaded.*hash") as error:
        read(upstream.url)
    assert FILE.md5 in error.value.expected
    assert list(cache.iterdir()) == []


def test_a_kept_file_that_went_bad_is_downloaded_again(upstream, cache):
    cache.mkdir()
    (cache / FILE.name).write_bytes(b"half of it")
    assert read(upstream.url) == CONTENT
    assert (cache / FILE.name).read_bytes() == CONTENT


def test_a_file_that_is_not_upstream_is_refused(upstream, folder):
    (folder / FILE.name).unlink()
    with pytest.raises(DataError, match="404"):
        read(upstream.url)


def test_without_a_network_the_cure_is_a_folder(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(DataError, match="ConnectionError") as error:
        read("http://127.0.0.1:1/")
    assert "images.zip in a folder that INNERLOOP_DATA names" in error.value.expected


def test_without_a_writable_cache_a_download_is_not_kept(upstream, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("INNERLOOP_CACHE", str(tmp_path / "file" / "cache"))
    with downloaded(FILE, upstream.url) as path:
        assert path.read_bytes() == CONTENT
    assert not path.exists()


def test_a_file_in_a_cache_that_cannot_be_written_is_used(upstream, cache, monkeypatch):
    cache.mkdir()
    (cache / FILE.name).write_bytes(CONTENT)
    monkeypatch.setattr(files, "_is_writable", lambda folder: False)
    assert read(upstream.url) == CONTENT
    assert upstream.requests == []


def test_the_default_cache_is_the_users(monkeypatch):
    monkeypatch.delenv("INNERLOOP_CACHE")
    assert "innerloop" in cache_folder().parts
