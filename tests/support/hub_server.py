"""A stand-in for a Hugging Face hub: what huggingface_hub asks of it to create, commit, upload by LFS and download.

`python hub_server.py FOLDER` prints its address and serves until it is ended; repositories lie in FOLDER. The token
`hf_writer` may write; `hf_reader` is known and may not.
"""

import base64
import hashlib
import json
import re
import subprocess
import sys
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

TOKENS = {"Bearer hf_writer": 200, "Bearer hf_reader": 403}
COMMIT = "c0ffee" + "0" * 34  # of every revision
LARGE = ".safetensors"


class Handler(BaseHTTPRequestHandler):
    root: Path
    protocol_version = "HTTP/1.1"

    def answer(self, status, content=b"", **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def log_message(self, *words):
        with (self.root / "requests.txt").open("a") as file:
            file.write(f"{self.command} {self.path}\n")

    def repository(self, name):
        return self.root / "repositories" / name

    def do_POST(self):
        path, body = urlsplit(self.path).path, self.body()
        status = TOKENS.get(self.headers.get("Authorization"), 401)
        if status != 200:
            return self.answer(status, {"error": "no"}, X_Error_Message="You may not write here.")
        if path == "/api/repos/create":
            wanted = json.loads(body)
            folder = self.repository(f"{wanted['organization']}/{wanted['name']}")
            url = f"http://{self.headers['Host']}/{wanted['organization']}/{wanted['name']}"
            if folder.exists():
                return self.answer(409, {"error": "it exists", "url": url})
            folder.mkdir(parents=True)
            private = wanted.get("private") is True or wanted.get("visibility") == "private"
            (folder / ".private").write_text(json.dumps(private))
            return self.answer(200, {"url": url})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit|branch)/(.+)", path):
            return getattr(self, match[2])(self.repository(match[1]), match[1], body)
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self.batch(json.loads(body))
        return self.answer(404, {"error": path})

    def preupload(self, folder, name, body):
        files = [
            {"path": each["path"], "uploadMode": "lfs" if each["path"].endswith(LARGE) else "regular"}
            for each in json.loads(body)["files"]
        ]
        self.answer(200, {"files": [{**each, "shouldIgnore": False} for each in files]})

    def branch(self, folder, name, body):
        self.answer(200, {})

    def batch(self, wanted):
        objects = [
            {**each, "actions": {"upload": {"href": f"http://{self.headers['Host']}/lfs/{each['oid']}", "header": {}}}}
            for each in wanted["objects"]
        ]
        self.answer(200, {"transfer": "basic", "objects": objects})

    def do_PUT(self):
        content, oid = self.body(), self.path.rpartition("/")[2]
        if hashlib.sha256(content).hexdigest() != oid:
            return self.answer(422)
        (self.root / oid).write_bytes(content)
        return self.answer(200)

    def commit(self, folder, name, body):
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                (folder / value["path"]).write_bytes(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                (folder / value["path"]).write_bytes((self.root / value["oid"]).read_bytes())
        url = f"http://{self.headers['Host']}/{name}/commit/{COMMIT}"
        self.answer(200, {"commitUrl": url, "commitOid": COMMIT, "success": True})

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/tree/.+|/revision/.+)?", path):
            return self.describe(self.repository(match[1]), match[1], match[2] or "")
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.resolve(self.repository(match[1]), match[2], match[3])
        return self.answer(404, {"error": path})

    do_HEAD = do_GET

    def describe(self, folder, name, what):
        if not folder.is_dir():
            return self.answer(404, {"error": "none"}, X_Error_Code="RepoNotFound")
        if what.startswith("/revision/") and what.rpartition("/")[2] not in ("main", "draft", COMMIT):
            return self.answer(404, {"error": "none"}, X_Error_Code="RevisionNotFound")
        files = sorted(path for path in folder.iterdir() if path.name != ".private")
        if what.startswith("/tree/"):
            return self.answer(200, [self.entry(path) for path in files])
        private = json.loads((folder / ".private").read_text())
        siblings = [{"rfilename": path.name} for path in files]
        return self.answer(200, {"id": name, "sha": COMMIT, "private": private, "siblings": siblings, "tags": []})

    def entry(self, path):
        content = path.read_bytes()
        entry = {"type": "file", "path": path.name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        if path.suffix == LARGE:
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return entry

    def resolve(self, folder, revision, file):
        if not folder.is_dir():
            return self.answer(404, X_Error_Code="RepoNotFound")
        if revision not in ("main", "draft", COMMIT):
            return self.answer(404, X_Error_Code="RevisionNotFound")
        if not (folder / file).is_file():
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        content = (folder / file).read_bytes()
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        return self.answer(
            200, content, ETag=etag, X_Repo_Commit=COMMIT, X_Linked_Etag=etag, X_Linked_Size=str(len(content))
        )


@contextmanager
def hub_server(folder: Path):
    """Its address, while a process of its own serves."""
    folder.mkdir(exist_ok=True)
    process = subprocess.Popen([sys.executable, __file__, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    Handler.root = Path(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
