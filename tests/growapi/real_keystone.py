"""A real Keystone on a port of its own, with sqlite and fernet tokens below a folder: real_keystone.py FOLDER.

Prints a line of JSON with its URL, a project and tokens. Then a line of its input is the name of a token to revoke, each
answered with a line. The end of the input is its end.
"""

import json
import os
import pathlib
import socketserver
import subprocess
import sys
import threading
import urllib.request
import warnings
from wsgiref import simple_server

warnings.simplefilter("ignore")
folder = pathlib.Path(sys.argv[1]).resolve()
config = folder / "keystone.conf"
config.write_text(f"""
[DEFAULT]
log_file = {folder}/keystone.log
[database]
connection = sqlite:///{folder}/keystone.db
[fernet_tokens]
key_repository = {folder}/fernet
[fernet_receipts]
key_repository = {folder}/fernet
[credential]
key_repository = {folder}/credential
""")
for name in ["fernet", "credential"]:
    (folder / name).mkdir(mode=0o700)


class Quiet(simple_server.WSGIRequestHandler):
    def log_message(self, *_):
        pass


class Server(socketserver.ThreadingMixIn, simple_server.WSGIServer):
    daemon_threads = True


server = Server(("127.0.0.1", 0), Quiet)
url = f"http://127.0.0.1:{server.server_port}/v3"


def manage(*arguments):
    program = pathlib.Path(sys.executable).with_name("keystone-manage")
    done = subprocess.run([program, "--config-file", config, *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"keystone-manage {arguments[0]}: {done.stderr}")


owner = ["--keystone-user", str(os.getuid()), "--keystone-group", str(os.getgid())]
manage("db_sync")
manage("fernet_setup", *owner)
manage("credential_setup", *owner)
manage("bootstrap", "--bootstrap-password", "secret", "--bootstrap-public-url", url)

os.environ["OS_KEYSTONE_CONFIG_FILES"] = str(config)
# Keystone would read them.
del sys.argv[1:]
from keystone.wsgi import api  # noqa: E402
import keystone.conf  # noqa: E402

server.set_app(api.application)
threading.Thread(target=server.serve_forever, daemon=True).start()


def call(method, path, body=None, **headers):
    data = None if body is None else json.dumps(body).encode()
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json", **headers}, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        text = answer.read()
        return answer.headers.get("X-Subject-Token"), json.loads(text) if text else None


def log_in(user, password, project):
    identity = {"user": {"name": user, "domain": {"name": "Default"}, "password": password}}
    scope = {"project": {"name": project, "domain": {"name": "Default"}}}
    auth = {"identity": {"methods": ["password"], "password": identity}, "scope": scope}
    return call("POST", "/auth/tokens", {"auth": auth})[0]


admin = log_in("admin", "secret", "admin")
as_admin = {"X_Auth_Token": admin}
roles = {role["name"]: role["id"] for role in call("GET", "/roles", **as_admin)[1]["roles"]}


def project(name):
    return call("POST", "/projects", {"project": {"name": name}}, **as_admin)[1]["project"]["id"]


def user(name, project_id, role):
    body = {"user": {"name": name, "password": name}}
    user_id = call("POST", "/users", body, **as_admin)[1]["user"]["id"]
    call("PUT", f"/projects/{project_id}/users/{user_id}/roles/{roles[role]}", **as_admin)


mine, other, service = project("mine"), project("other"), project("service")
user("member", mine, "member")
user("reader", mine, "reader")
user("stranger", other, "member")
user("growapi", service, "admin")
tokens = {
    "member": log_in("member", "member", "mine"),
    "revoked": log_in("member", "member", "mine"),
    "reader": log_in("reader", "reader", "mine"),
    "stranger": log_in("stranger", "stranger", "other"),
}
keystone.conf.CONF.set_override("expiration", 1, group="token")
tokens["expired"] = log_in("member", "member", "mine")
keystone.conf.CONF.clear_override("expiration", group="token")
print(json.dumps({"url": url, "mine": mine, "other": other, "tokens": tokens}), flush=True)
for line in sys.stdin:
    call("DELETE", "/auth/tokens", X_Auth_Token=admin, X_Subject_Token=tokens[line.strip()])
    print("revoked", flush=True)
