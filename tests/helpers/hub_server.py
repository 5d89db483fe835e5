"""A Hub on this machine: enough of its API for huggingface_hub to create and upload, and for `datasets` to stream.

Commits are stored in `folder`/<repository>, as are the files of datasets; requests for the path `refuse` fail.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml


class Hub:
    def __init__(self, folder: Path, token: str):
        self.folder, self.token, self.refuse, self.created = folder, token, "", []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if not self.is_welcome():
            return
        if "/resolve/" in path:
            self.give_file(*path.removeprefix("/datasets").lstrip("/").split("/resolve/"))
            return
        repository = "/".join(path.split("/")[3:5])
        files = sorted(path for path in (self.hub.folder / repository).glob("*") if path.is_file())
        if path.startswith("/api/datasets/") and "/tree/" in path:
            files = files if path.count("/") == 6 else []  # none in folders
            self.answer([{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "1" * 40} for f in files])
        else:
            folder = self.hub.folder / repository
            inside = sorted(file for file in folder.rglob("*") if file.is_file())
            names = [{"rfilename": f.relative_to(folder).as_posix(), "size": f.stat().st_size} for f in inside]
            about = {"id": repository, "sha": "0" * 40, "siblings": names, "tags": [], "private": True}
            self.answer({"name": "me", "type": "user", **about})

    do_HEAD = do_GET

    def give_file(self, repository: str, revision_and_name: str) -> None:
        """Send a file, or the requested part of it."""
        file = self.hub.folder / repository / revision_and_name.split("/", 1)[1]
        if not file.is_file():
            self.answer({}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": "0" * 40})
            return
        data, code = file.read_bytes(), 200
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": "0" * 40}
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(part[1]), min(int(part[2] or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data, code = data[first : last + 1], 206
        self.answer(data, code, headers)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self.is_welcome():
            return
        if self.path == "/api/repos/create":
            self.hub.created.append(json.loads(body))
            self.answer({"url": f"{self.hub.endpoint}/me/cat"})
        elif self.path == "/api/validate-yaml":
            header = yaml.safe_load(json.loads(body)["content"].split("\n---\n")[0])
            if re.fullmatch(r"[\w.-]+/[\w.-]+", header.get("base_model", "owner/name")):
                self.answer({"errors": [], "warnings": []})
            else:
                self.answer({"error": f'"base_model" with value "{header["base_model"]}" is not valid'}, 400)
        elif "/preupload/" in self.path:
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            self.answer({"files": [{**file, "shouldIgnore": False} for file in files]})
        elif "/commit/" in self.path:
            repository = "/".join(self.path.split("/")[3:5])
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    path = self.hub.folder / repository / line["value"]["path"]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(base64.b64decode(line["value"]["content"]))
            address = f"{self.hub.endpoint}/{repository}/commit/{'0' * 40}"
            self.answer({"success": True, "commitUrl": address, "commitOid": "0" * 40})

    def is_welcome(self) -> bool:
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self.answer({"error": "Invalid credentials in Authorization header"}, 401)
            return False
        if self.hub.refuse and self.hub.refuse in self.path:
            self.answer({"error": "You have read access but not the required permissions"}, 403)
            return False
        return True

    def answer(self, value: dict | list | bytes, code: int = 200, headers: dict[str, str] | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(code)
        kind = "application/octet-stream" if isinstance(value, bytes) else "application/json"
        for name, text in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_) -> None:
        pass
