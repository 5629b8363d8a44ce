"""Container files name what exists: flags, routes, variables, metrics, folders, extras."""

import ast
import ipaddress
import json
import pathlib
import re

import pytest
import yaml  # Comes with flax.

_ROOT = pathlib.Path(__file__).parents[2]
_FOLDER = _ROOT / "containers"


def _text(*parts) -> str:
    return _ROOT.joinpath(*parts).read_text(encoding="utf-8")


def _instructions() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile, with continued lines joined and comments left out."""
    lines = [line for line in _text("containers", "Dockerfile").splitlines() if line[:1] != "#"]
    joined = "\n".join(lines).replace("\\\n", " ")
    found = [line.split(None, 1) for line in joined.splitlines() if line.strip()]
    return [(word, re.sub(r"\s+", " ", rest.strip())) for word, rest in found]


def _of(word: str) -> list[str]:
    return [rest for kind, rest in _instructions() if kind == word]


def _flags() -> set[str]:
    """Flags of the server, those it shares with other launchers too; booleans also with `no`."""
    server = ast.parse(_text("launch", "serve.py"))
    called = {ast.unparse(n.func) for n in ast.walk(server) if isinstance(n, ast.Call)}
    shared = [
        node for node in ast.parse(_text("launch", "common.py")).body
        if isinstance(node, ast.FunctionDef) and f"common.{node.name}" in called
    ]
    found = set()
    for node in (node for tree in (server, *shared) for node in ast.walk(tree)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("flags.DEFINE_"):
            name = node.args[0].value
            found |= {name, "no" + name} if node.func.attr == "DEFINE_bool" else {name}
    return found


def _flag_names(arguments: list[str]) -> set[str]:
    return {a[2:].partition("=")[0] for a in arguments if a.startswith("--")}


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load(_text("containers", "compose.yaml"))


@pytest.fixture(scope="module")
def kinds():
    documents = yaml.safe_load_all(_text("containers", "kubernetes.yaml"))
    return {document["kind"]: document for document in documents}


@pytest.fixture(scope="module")
def pod(kinds):
    return kinds["Deployment"]["spec"]["template"]["spec"]


def test_images_are_pinned_and_stages_exist(compose):
    assert _of("ARG") == ["PYTHON_IMAGE=python:3.12.11-slim-bookworm"]
    stages = {}
    for rest in _of("FROM"):
        base, _, name = rest.partition(" AS ")
        assert base == "${PYTHON_IMAGE}" or base in stages, base
        stages[name] = base
    for rest in _of("COPY"):
        source = re.match(r"--from=(\S+)", rest)
        assert source is None or source[1] in stages
    for name, service in compose["services"].items():
        if "build" in service:
            assert service["build"]["target"] in stages
            assert (_FOLDER / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        else:
            assert re.fullmatch(r"[\w/]+:\d+\.\d+\.\d+(-\w+)?", service["image"]), name


def test_what_is_copied_exists_and_is_sent_to_the_builder():
    sent = _text("containers", "Dockerfile.dockerignore").splitlines()
    for rest in _of("COPY"):
        if not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (_ROOT / source).exists(), source
                assert f"!{source}" in sent, source


def test_pip_keeps_no_cache_and_the_extras_are_known():
    table = next(
        node.value for node in ast.parse(_text("setup.py")).body
        if isinstance(node, ast.Assign) and node.targets[0].id == "EXTRAS"
    )
    installs = [rest for rest in _of("RUN") if "pip install" in rest]
    assert len(installs) == 3 and all("--no-cache-dir" in rest for rest in installs)
    wanted = {e for rest in installs for e in re.search(r"\.\[([\w,]+)\]", rest)[1].split(",")}
    unknown = wanted - set(ast.literal_eval(table))
    assert not unknown, f"the Dockerfile installs extras that setup.py does not have: {unknown}"


def test_it_runs_as_somebody_and_serves_what_is_checked():
    words = [word for word, _ in _instructions()]
    assert _of("USER") == ["10001:10001"] and words.index("USER") < words.index("ENTRYPOINT")
    command = json.loads(_of("ENTRYPOINT")[0])
    assert command[1] == "launch/serve.py" and _flag_names(command) <= _flags()
    assert "--host=0.0.0.0" in command
    port = next(a for a in command if a.startswith("--port=")).partition("=")[2]
    assert _of("EXPOSE") == [port]
    check = json.loads(_of("HEALTHCHECK")[0].partition("CMD ")[2])
    path = re.search(rf"http://127\.0\.0\.1:{port}(/\w+)'", check[2])[1]
    assert path in _routes()
    ast.parse(check[2])


def _routes() -> set[str]:
    return set(re.findall(r'web\.\w+\("(/\w+)"', _text("tm_jax", "serving", "app.py")))


def test_everything_written_is_below_the_volume():
    folder = _of("VOLUME")[0]
    environment = dict(p.split("=", 1) for rest in _of("ENV") for p in rest.split())
    for name in ("TM_JAX_CACHE", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        assert environment[name].startswith(folder)
    assert "TM_JAX_CACHE" in _text("launch", "common.py")


def test_compose_passes_flags_variables_and_secrets_that_the_server_reads(compose):
    serve = _text("launch", "serve.py")
    for name in ("server", "server-cuda"):
        service = compose["services"][name]
        assert _flag_names(service["command"]) <= _flags()
        for variable in service["environment"]:
            assert variable in serve
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        assert "/var/cache/tm_jax" in service["volumes"][0]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        ice = next(a for a in service["command"] if a.startswith("--ice_servers"))
        parsed = json.loads(ice.partition("=")[2])
        user = next(
            a for a in compose["services"]["turn"]["command"] if a.startswith("--user=")
        )
        # The credential itself comes from the environment on both sides.
        assert parsed[0]["username"] == user.partition("=")[2].partition(":")[0]
        assert "TM_JAX_TURN_CREDENTIAL" in user and "TM_JAX_TURN_CREDENTIAL" in serve
    gpu = compose["services"]["server-cuda"]["deploy"]["resources"]["reservations"]["devices"]
    assert gpu[0]["driver"] == "nvidia" and gpu[0]["capabilities"] == ["gpu"]
    drain = next(a for a in compose["services"]["server"]["command"] if "drain" in a)
    assert float(drain.partition("=")[2]) < float(compose["services"]["server"]["stop_grace_period"][:-1])


def test_the_relay_reaches_the_server_and_no_private_network(compose):
    services = compose["services"]
    subnet = ipaddress.ip_network(compose["networks"]["calls"]["ipam"]["config"][0]["subnet"])
    server = services["server"]["networks"]["calls"]["ipv4_address"]
    turn = services["turn"]["networks"]["calls"]["ipv4_address"]
    assert ipaddress.ip_address(server) in subnet and ipaddress.ip_address(turn) in subnet
    command = services["turn"]["command"]
    allowed = [a.partition("=")[2] for a in command if a.startswith("--allowed-peer-ip")]
    assert allowed == [server]
    denied = [
        tuple(map(ipaddress.ip_address, a.partition("=")[2].split("-")))
        for a in command if a.startswith("--denied-peer-ip")
    ]

    def refused(address):
        address = ipaddress.ip_address(address)
        return any(low <= address <= high for low, high in denied if low.version == address.version)

    for address in (
        "10.1.2.3", "127.0.0.1", "169.254.169.254", "172.17.0.1", turn, "192.168.1.1", "0.0.0.0",
        "100.64.0.1", "224.0.0.1", "255.255.255.255", "::1", "fd00::1", "fe80::1", "::ffff:a00:1",
    ):
        assert refused(address), address
    assert not refused("93.184.215.14") and not refused("2606:4700::1")
    ports = [a.partition("=")[2] for a in command if re.match("--(min|max)-port", a)]
    assert "-".join(ports) in " ".join(services["turn"]["ports"])


def test_the_deployment_probes_routes_and_drains_in_time(pod):
    container = pod["containers"][0]
    assert _flag_names(container["args"]) <= _flags()
    routes = {k: container[k]["httpGet"]["path"] for k in container if k.endswith("Probe")}
    assert routes == {
        "startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/healthz"
    }
    assert set(routes.values()) <= _routes()
    assert str(container["ports"][0]["containerPort"]) == _of("EXPOSE")[0]
    drain = next(a for a in container["args"] if a.startswith("--drain_s=")).partition("=")[2]
    before = re.search(r"sleep\((\d+)\)", container["lifecycle"]["preStop"]["exec"]["command"][2])[1]
    assert float(drain) + float(before) < pod["terminationGracePeriodSeconds"]
    for variable in container["env"]:
        assert variable["name"] in _text("launch", "serve.py")
        assert "value" not in variable  # Secrets come from a Secret.


def test_the_deployment_has_no_rights_that_it_does_not_need(pod):
    container = pod["containers"][0]
    assert pod["securityContext"]["runAsNonRoot"]
    assert str(pod["securityContext"]["runAsUser"]) == _of("USER")[0].partition(":")[0]
    limits = container["securityContext"]
    assert limits["readOnlyRootFilesystem"] and not limits["allowPrivilegeEscalation"]
    assert limits["capabilities"] == {"drop": ["ALL"]}
    mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
    assert mounts["cache"] == _of("VOLUME")[0]
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    assert ":" in container["image"] and not container["image"].endswith(":latest")


def test_the_parts_of_the_deployment_find_each_other(kinds):
    labels = kinds["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert kinds["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert kinds["Service"]["spec"]["selector"] == labels
    assert kinds["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert kinds["Service"]["spec"]["ports"][0]["targetPort"] == "http"
    backend = kinds["Ingress"]["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    assert backend["name"] == kinds["Service"]["metadata"]["name"]
    target = kinds["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", kinds["Deployment"]["metadata"]["name"])


def test_callers_stick_to_a_pod_and_load_scales_it(kinds):
    notes = kinds["Ingress"]["metadata"]["annotations"]
    prefix = "nginx.ingress.kubernetes.io/"
    assert notes[prefix + "affinity"] == "cookie"
    assert float(notes[prefix + "proxy-read-timeout"]) >= 3600
    metric = kinds["HorizontalPodAutoscaler"]["spec"]["metrics"][0]["pods"]["metric"]["name"]
    assert metric == "tm_jax_load"
    assert '"load": (' in _text("tm_jax", "serving", "calls", "exchange.py")
    assert 'f"tm_jax_{name}"' in _text("tm_jax", "serving", "runtime", "metrics.py")


@pytest.mark.parametrize("page", ["agents.md", "capacity.md", "plugins.md"])
def test_pages_name_flags_and_files_that_exist(page):
    text = _text("docs", page)
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("http") or (_ROOT / "docs" / target).exists(), target
    known = _flags() | {"help"}
    for node in ast.walk(ast.parse(_text("launch", "bench_server.py"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("flags.DEFINE_"):
            known.add(node.args[0].value)
    # A builder's flags are its own, but what they name is ours.
    builds = re.findall(r"`(?:docker|buildah) build (.*?) \.`", text)
    assert builds if page == "capacity.md" else not builds
    for arguments in builds:
        words = dict(re.findall(r"(-\S+) (\S+)", arguments))
        assert (_ROOT / words["-f"]).is_file(), arguments
        assert re.search(rf"(?m)^FROM .* AS {words['--target']}$", _text(words["-f"])), arguments
        text = text.replace(arguments, "")
    assert set(re.findall(r"--([a-z]\w+)", text)) <= known
    for path in re.findall(r"`(tm_jax/[\w/]+\.py)`", text):
        assert (_ROOT / path).is_file(), path
    for route in re.findall(r"GET (/\w+)`", text):
        assert route in _routes(), route
