"""mim-watch as a process of its own: who it answers, what it serves, and how it ends."""

import json
import re
import shutil
import signal
import socket
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from http.client import HTTPConnection

import pytest
from processes import ROOT, start, tool
from run_folders import real_runs

PICTURE = b"\x89PNG\r\n\x1a\n of the newest"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of a finished run with pictures, beside files that are nobody's business."""
    folder = tmp_path_factory.mktemp("watched")
    (folder / "secret.png").write_bytes(b"secret")
    run = folder / "runs" / "mae"
    shutil.copytree(real_runs().pretraining, run)
    pictures = run / "reconstructions"
    pictures.mkdir(exist_ok=True)
    for step, content in ((9, b"old"), (14, PICTURE)):
        (pictures / f"step-{step}.png").write_bytes(content)
    (pictures / "step-20.png").symlink_to(folder / "secret.png")
    (pictures / "notes.png").write_bytes(b"notes")
    (run / "segmentations").symlink_to(folder)
    (folder / "step-1.png").write_bytes(b"secret")
    return folder / "runs"


@contextmanager
def watching(*words):
    """The process of tools/watch.py, and the address that it prints."""
    process = start([sys.executable, str(ROOT / "tools" / "watch.py"), *map(str, words)])
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def server(runs):
    with watching(runs) as (process, url):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{32}/", url), url + process.stdout.read()
        yield url
        assert process.poll() is None


def get(url, **headers):
    """Status, headers and content of an answer."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def raw(server, target, method="GET", **headers):
    """The status of a request whose target is sent as it stands; urllib would tidy it."""
    connection = HTTPConnection("127.0.0.1", int(re.search(r":(\d+)/", server)[1]), timeout=20)
    connection.putrequest(method, target, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content


@pytest.mark.slow
def test_page_and_its_parts_are_served_with_the_token(server):
    for name, kind in (("", "text/html"), ("watch.css", "text/css"), ("watch.js", "text/javascript")):
        status, headers, content = get(server + name)
        assert (status, headers.get_content_type()) == (200, kind)
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert headers["Cache-Control"] == "no-store"
        assert len(content) == int(headers["Content-Length"])
        assert not re.search(rb"https?://(?!www\.w3\.org/2000/svg)|innerHTML|eval\(", content)


@pytest.mark.slow
def test_wrong_or_missing_token_is_refused_everywhere(server):
    base, token = re.match(r"(.*:\d+)/(.*)/", server).groups()
    wrong = ("", token[:-1], token + "x", token.swapcase(), "x" * len(token), "%C3%A9", token[::-1])
    for name in ("", "watch.js", "runs.json", "charts/0", "pictures/0/reconstructions/step-14.png"):
        for other in wrong if name != token else wrong[1:]:  # //TOKEN is /TOKEN
            status, _, content = get(f"{base}/{other}/{name}")
            assert (status, content) == (403, b"This address has no valid token.\n"), (other, name)
    for target in ("/", "/runs.json", f"/?{token}", f"/runs.json?token={token}", "*", f"/.{token}/"):
        assert raw(server, target)[0] == 403, target


@pytest.mark.slow
def test_request_in_the_name_of_another_host_is_refused(server):
    port, token = re.search(r":(\d+)/(.*)/", server).groups()
    for host, status in (
        (f"localhost:{port}", 200),
        (f"127.0.0.1:{port}", 200),
        (f"evil.example:{port}", 403),
        ("", 403),
    ):
        assert raw(server, f"/{token}/runs.json", Host=host)[0] == status


@pytest.mark.slow
def test_other_methods_are_not_served(server):
    token = server.split("/")[3]
    for method in ("POST", "PUT", "DELETE", "HEAD", "OPTIONS"):
        assert raw(server, f"/{token}/runs.json", method)[0] == 501


@pytest.mark.slow
def test_runs_curves_and_newest_picture_are_those_of_the_folder(server, runs):
    (run,) = json.loads(get(server + "runs.json")[2])["runs"]
    assert (run["state"], run["task"], run["epoch"], run["epochs"]) == ("finished", "pretrain", 1.0, 1)
    assert run["name"].endswith("runs/mae")
    picture = run["picture"]
    assert (picture["kind"], picture["name"], picture["step"]) == ("reconstructions", "step-14.png", 14)
    address = f"{server}pictures/{run['id']}/{picture['kind']}/{picture['name']}?{picture['version']}"
    status, headers, content = get(address)
    assert (status, headers.get_content_type(), content) == (200, "image/png", PICTURE)
    charts = json.loads(get(f"{server}charts/{run['id']}")[2])
    written = [json.loads(line) for line in (runs / "mae" / "metrics.jsonl").read_text().splitlines()]
    assert charts[0]["lines"][0]["values"] == [row["train/loss"] for row in written if "train/loss" in row]


@pytest.mark.slow
def test_no_other_file_can_be_reached(server):
    token = server.split("/")[3]
    (run,) = json.loads(get(server + "runs.json")[2])["runs"]
    pictures = f"pictures/{run['id']}/reconstructions"
    assert raw(server, f"/{token}/{pictures}/step-9.png")[1] == b"old"
    beyond = [
        *(
            f"{pictures}/{name}"
            for name in ("step-20.png", "notes.png", "step-15.png", "", ".", "..", "../config.yaml")
        ),
        *(f"{pictures}/{up}secret.png" for up in ("../../../", "..%2f..%2f..%2f", "..\\..\\..\\", "%2e%2e/%2e%2e/")),
        f"pictures/{run['id']}/segmentations/step-1.png",
        f"pictures/{run['id']}/checkpoints/last",
        f"pictures/{run['id']}/../mae/config.yaml",
        f"pictures/{run['id']}/config.yaml",
        "pictures/../reconstructions/step-14.png",
        "pictures//reconstructions/step-14.png",
        f"charts/{run['id']}/../../config.yaml",
        *("charts/..", "charts/", "../runs.json", "..", "watch.html", "/etc/passwd", "//etc/passwd", "runs.json/"),
        *("../../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "server.py", "templates/watch.js", "watch.js%00.png"),
    ]
    for address in beyond:
        status, content = raw(server, f"/{token}/{address}")
        assert (status, content) == (404, b"There is nothing at this address.\n"), address
    for target in (f"/{token}/../{token}/etc/passwd", f"/../{token}/runs.json", f"/{token}"):
        assert raw(server, target)[0] in (403, 404), target


@pytest.mark.slow
def test_two_servers_have_two_tokens_and_listen_on_loopback_only(server, runs):
    port = int(re.search(r":(\d+)/", server)[1])
    with watching(runs, "--port", port) as (process, line):
        assert f"port {port} of 127.0.0.1: Address already in use" in line
        assert process.wait(20) == 3
    with watching(runs) as (_, other):
        assert other.split("/")[3] != server.split("/")[3]
    for family, _, _, _, address in socket.getaddrinfo(socket.gethostname(), port, type=socket.SOCK_STREAM):
        with socket.socket(family) as outside:
            outside.settimeout(5)
            if not str(address[0]).startswith("127."):
                assert outside.connect_ex(address) != 0


@pytest.mark.slow
def test_browser_that_leaves_and_ctrl_c_end_without_a_word(runs):
    with watching(runs) as (process, url):
        port, token = re.search(r":(\d+)/(.*)/", url).groups()
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", int(port))) as browser:
                browser.sendall(f"GET /{token}/runs.json HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
                browser.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # a reset
        assert get(url)[0] == 200
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=20)
        assert process.returncode == 130
        assert output.splitlines()[-1] == "stopped"
        assert "Error" not in output


@pytest.mark.parametrize(
    ("words", "named"),
    [(["{tmp}/none"], "none does not exist: name a run folder"), (["{tmp}", "--port", "70000"], "--port is 70000")],
)
def test_mistakes_are_named(tmp_path, capsys, words, named):
    assert tool("watch").main([word.format(tmp=tmp_path) for word in words]) == 2
    assert named in capsys.readouterr().err
