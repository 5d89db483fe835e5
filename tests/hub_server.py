"""A Hub of one machine: enough of its web interface for huggingface_hub's own client to create and upload.

What is committed lies in `folder`/<repository>; `refuse` names a path whose requests fail.
"""

import base64
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
        if self.is_welcome():
            repository = "/".join(self.path.split("?")[0].split("/")[3:5])
            self.answer({"name": "me", "type": "user", "id": repository, "sha": "0" * 40, "siblings": []})

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

    def answer(self, value: dict, code: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_) -> None:
        pass
