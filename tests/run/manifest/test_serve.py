"""`pangu manifest serve`: units that systemd takes, resources that Kubernetes takes, and commands that `pangu serve`
takes."""

import json
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from ascend_ops.library import LEVELS
from pangu_ms.cli.serve import build_parser
from pangu_ms.config import load_config
from pangu_ms.core.console import guarded
from pangu_ms.serve.settings import Limits
from pangu_run.cli.manifest import main
from tests.run.manifest.schemas import DEPLOYMENT, SERVICE, expanded, faults, instructions
from tests.run.manifest.tools import NASTY, written

MODEL = f"/models/{NASTY}"
CLAIM = ["--claim", "models:/models"]
SYSTEMD = shutil.which("systemd-analyze")


def made(capsys, kind, *words, model="/models/run"):
    return written(capsys, "serve", model, "--kind", kind, *words)


def unit_of(text):
    """{(section, name): values} of a unit."""
    found, section = {}, ""
    for line in text.splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault((section, name), []).append(value)
    return found


def words_of(line, **specifiers):
    """The arguments of an ExecStart line as systemd reads it: specifiers, quotes with C's escapes, then $$."""
    line = re.sub("%(.)", lambda match: "%" if match[1] == "%" else specifiers[match[1]], line)
    words = re.findall(r'"((?:\\.|[^"\\])*)"|(\S+)', line)
    assert not any("$" in re.sub(r"\$\$", "", quoted + bare) for quoted, bare in words)
    return [re.sub(r"\\(.)", r"\1", quoted or bare).replace("$$", "$") for quoted, bare in words]


def options_of(words):
    """What `pangu serve` understands."""
    return vars(build_parser().parse_intermixed_args(words))


def test_the_unit(capsys):
    text = made(
        capsys, "systemd", "--executable", "/opt/pangu/bin/pangu", "--slots", "3", "--memory", "8Gi", model=MODEL
    )
    unit = unit_of(text)
    (line,) = unit["Service", "ExecStart"]
    program, verb, *words = words_of(line, d="/run/credentials/x")
    assert (program, verb) == ("/opt/pangu/bin/pangu", "serve")
    options = options_of(words)
    assert str(options["checkpoint"]) == MODEL and options["slots"] == 3 and options["host"] == "127.0.0.1"
    assert options["name"] == "pangu-serve" and options["port"] == 8000
    credential, _, source = unit["Service", "LoadCredential"][0].partition(":")
    assert str(options["api_key_file"]) == f"/run/credentials/x/{credential}" and source == "/etc/pangu/api-keys"
    assert unit["Service", "MemoryMax"] == ["8G"] and unit["Service", "DynamicUser"] == ["yes"]
    assert int(unit["Service", "TimeoutStopSec"][0]) > options["drain_timeout"] + Limits().send_timeout
    assert int(unit["Service", "LimitNOFILE"][0]) > 2 * Limits().connections
    for name, value in (("NoNewPrivileges", "yes"), ("ProtectSystem", "strict"), ("ProtectHome", "yes")):
        assert unit["Service", name] == [value]
    assert unit["Service", "CapabilityBoundingSet"] == [""]
    assert unit["Install", "WantedBy"] == ["multi-user.target"]
    bare = unit_of(made(capsys, "systemd", "--executable", "/x", "--no-api-key"))
    assert ("Service", "LoadCredential") not in bare and "api-key" not in bare["Service", "ExecStart"][0]


@pytest.mark.skipif(not SYSTEMD, reason="no systemd-analyze")
def test_systemd_takes_the_unit(capsys, tmp_path):
    file = tmp_path / "pangu-serve.service"
    words = ["--executable", "/bin/true", "--memory", "8Gi", "--output", str(file)]
    made(capsys, "systemd", *words, model=MODEL)
    done = subprocess.run([SYSTEMD, "verify", "--man=no", file], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    # systemd's own measure of exposure: 0 is none, 100 everything; it calls below 20 "OK" or "SAFE".
    safe = [SYSTEMD, "security", "--offline=yes", "--threshold=20", "--no-pager", file]
    assert subprocess.run(safe, capture_output=True).returncode == 0
    file.write_text(file.read_text().replace("ProtectSystem=strict", "ProtectSystm=strict"))
    assert (
        "ProtectSystm" in subprocess.run([SYSTEMD, "verify", "--man=no", file], capture_output=True, text=True).stderr
    )


def deployed(capsys, *words, model=MODEL):
    """Deployment, its pod, its container, and the service."""
    deployment, service = yaml.safe_load_all(made(capsys, "kubernetes", *words, model=model))
    assert faults(deployment, DEPLOYMENT) == faults(service, SERVICE) == []
    pod = deployment["spec"]["template"]["spec"]
    return deployment, pod, pod["containers"][0], service


def test_the_deployment(capsys):
    more = [
        "--replicas",
        "3",
        "--port",
        "9000",
        "--namespace",
        "team",
        "--image",
        "i:1",
        "--cpu",
        "6",
        "--drain-timeout",
        "90",
    ]
    deployment, pod, container, service = deployed(capsys, *CLAIM, "--memory", "8Gi", *more)
    assert deployment["metadata"]["namespace"] == service["metadata"]["namespace"] == "team"
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels == service["spec"]["selector"]
    assert deployment["spec"]["replicas"] == 3 and container["image"] == "i:1"
    (port,) = service["spec"]["ports"]
    assert port["port"] == container["ports"][0]["containerPort"] == 9000
    assert port["targetPort"] == container["ports"][0]["name"] == "http"
    environment = {one["name"]: one["value"] for one in container["env"]}
    options = options_of([expanded(word, environment) for word in container["args"]])
    assert str(options["checkpoint"]) == MODEL and (options["host"], options["port"]) == ("0.0.0.0", 9000)
    assert container["resources"]["limits"] == container["resources"]["requests"] == {"cpu": "6", "memory": "8Gi"}
    assert environment["OMP_NUM_THREADS"] == "6"
    # The drain, and readers that are slow at its end, and the wait before SIGTERM.
    before = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert options["drain_timeout"] == 90
    assert pod["terminationGracePeriodSeconds"] > 90 + Limits().send_timeout + before
    probes = {name: container[f"{name}Probe"] for name in ("startup", "liveness", "readiness")}
    paths = {name: probe["httpGet"]["path"] for name, probe in probes.items()}
    assert paths == {"startup": "/ready", "liveness": "/health", "readiness": "/ready"}
    assert probes["startup"]["periodSeconds"] * probes["startup"]["failureThreshold"] >= 600


def test_the_pod_writes_nothing_but_caches(capsys):
    _, pod, container, _ = deployed(capsys, *CLAIM, "--mount", "/data:/data", "--memory", "8Gi")
    assert pod["securityContext"]["runAsNonRoot"] and container["securityContext"]["readOnlyRootFilesystem"]
    assert not container["securityContext"]["allowPrivilegeEscalation"] and not pod["automountServiceAccountToken"]
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in mounts.values()} == set(volumes)
    assert {path for path, mount in mounts.items() if not mount.get("readOnly")} == {"/tmp", "/cache"}
    assert volumes[mounts["/models"]["name"]]["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}
    assert volumes[mounts["/data"]["name"]]["hostPath"]["path"] == "/data"
    key_file = Path(options_of(container["args"])["api_key_file"])
    secret = volumes[mounts[str(key_file.parent)]["name"]]["secret"]
    assert secret["secretName"] == "pangu-serve-api-keys" and secret["defaultMode"] == 0o440
    text = made(capsys, "kubernetes", *CLAIM, "--memory", "8Gi", "--name", "b")
    assert f"kubectl create secret generic b-api-keys --namespace default --from-file={key_file.name}=FILE" in text
    _, pod, container, _ = deployed(capsys, *CLAIM, "--memory", "8Gi", "--no-api-key")
    assert options_of(container["args"])["api_key_file"] is None
    assert not any("secret" in volume for volume in pod["volumes"])


def test_the_memory_is_that_of_weights_and_slots(capsys):
    """Counted here: float32 weights of the checkpoint's tensors, keys and values."""
    model = load_config("alpha/10m").model
    _, _, container, _ = deployed(capsys, *CLAIM, "--config", "alpha/10m", "--slots", "512", "--max-length", "200")
    given = int(container["resources"]["limits"]["memory"].removesuffix("Mi")) * 2**20
    layer = 12 * model.hidden_size**2 + 13 * model.hidden_size  # attention, feed-forward of 4 times the width, norms
    weights = 4 * (model.num_layers + 1) * layer
    cache = 512 * 200 * 2 * model.num_layers * model.hidden_size * 4
    assert weights + cache + 2**30 < given < 2 * (weights + cache) + 2**31
    assert options_of(container["args"])["max_length"] == 200


def stages_of(text):
    """The instructions of each stage of a Dockerfile."""
    stages = [[]]
    for name, rest in instructions(text):
        if name == "FROM":
            stages.append([])
        stages[-1].append((name, rest))
    return stages[1:]


def test_the_dockerfile(capsys):
    build, last = stages_of(made(capsys, "docker", "--port", "9000", model=MODEL))
    assert build[0] == ("FROM", "${BASE} AS build") and last[0] == ("FROM", "${BASE}")
    assert [rest for name, rest in last if name == "USER"] == ["${UID}:${GID}"] and ("ARG", "UID=1000") in last
    assert not any("g++" in rest for _, rest in last) and any("g++" in rest for _, rest in build)
    copied = [json.loads(rest.partition("=build ")[2]) for name, rest in last if rest.startswith("--from=build")]
    assert copied == [["/opt/pangu", "/opt/pangu"]]
    scripts = [rest for name, rest in build + last if name == "RUN"]
    for script in scripts:
        assert subprocess.run(["bash", "-n", "-c", script], capture_output=True).returncode == 0
    (levels,) = [re.search('levels="(.*?)"', script)[1] for script in scripts if "levels=" in script]
    assert set(levels.split()) == set(LEVELS)
    cache = [rest for name, rest in build + last if name == "ENV" and "ASCEND_OPS_CACHE=/opt/pangu/ops" in rest]
    assert len(cache) == 2  # where the kernels are built, and where they are looked for
    final = dict(last)
    assert json.loads(final["ENTRYPOINT"])[-2:] == ["pangu", "serve"] and final["EXPOSE"] == "9000"
    options = options_of(json.loads(final["CMD"]))
    assert str(options["checkpoint"]) == MODEL and (options["host"], options["port"]) == ("0.0.0.0", 9000)


class Health(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self):
        self.send_response(self.status if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_the_health_check_asks_the_server(capsys):
    with HTTPServer(("127.0.0.1", 0), Health) as server:
        threading.Thread(target=server.serve_forever).start()
        _, last = stages_of(made(capsys, "docker", "--port", str(server.server_port)))
        command = json.loads(dict(last)["HEALTHCHECK"].partition(" CMD ")[2])
        assert command[0] == "/opt/pangu/bin/python"
        healthy = subprocess.run([sys.executable, *command[1:]]).returncode
        Health.status = 500
        ill = subprocess.run([sys.executable, *command[1:]], capture_output=True).returncode
        server.shutdown()
    assert healthy == 0 and ill != 0


def test_further_options_of_the_server(capsys):
    more = ["--", "--weights", "int8", "--send-timeout=45.5", "--cors-origin", "*"]
    _, pod, container, _ = deployed(capsys, *CLAIM, "--memory", "8Gi", *more)
    options = options_of(container["args"])
    assert options["weights"] == "int8" and options["cors_origin"] == ["*"]
    assert pod["terminationGracePeriodSeconds"] > 30 + 45.5


MISTAKES = [
    ("systemd", ["--executable", "/home/me/pangu"], "/home/me/pangu: a service does not see homes"),
    ("systemd", ["--executable", "pangu"], "--executable pangu: must be an absolute path"),
    ("systemd", ["--executable", "/x", "--api-key-file", "keys"], "--api-key-file keys: must be an absolute path"),
    ("systemd", ["--executable", "/x", "--replicas", "2"], "--replicas: is no option of --kind systemd"),
    ("systemd", ["--executable", "/x", "--no-api-key", "--api-key-file", "/k"], "--no-api-key: another option"),
    ("docker", ["--port", "80"], "--port 80: must be from 1024"),
    ("docker", ["--host", "0.0.0.0"], "--host: is no option of --kind docker"),
    ("docker", ["--name", "A B"], "--name A B: must be"),
    ("docker", ["--memory", "lots"], "--memory lots: must be a whole number"),
    ("docker", ["--", "--slots=9"], "--slots: is set by the manifest"),
    ("docker", ["--", "--send-timeout", "soon"], "--send-timeout soon: must be seconds"),
    ("docker", ["--image", "a\nUSER root"], "has a control character"),
    ("docker", ["--", "--cors-origin", "a\nUSER root"], "has a control character"),
    ("kubernetes", CLAIM, "--config, --memory: Kubernetes needs the server's memory"),
    ("kubernetes", ["--memory", "1Gi"], "MODEL /models/run: lies in no --mount"),
    ("kubernetes", ["--memory", "1Gi", "--claim", "models"], "--claim models: must be NAME:PATH"),
    ("kubernetes", ["--memory", "1Gi", *CLAIM, "--mount", "/a:/models"], "/models: is mounted twice"),
    ("kubernetes", ["--memory", "1Gi", *CLAIM, "--mount", "/a:/tmp"], "/tmp: is mounted twice"),
    ("kubernetes", [*CLAIM, "--config", "alpha/nope"], "alpha/nope: no such file or shipped config"),
]


@pytest.mark.parametrize(("kind", "words", "says"), MISTAKES)
def test_mistakes_are_one_line_and_write_nothing(capsys, tmp_path, kind, words, says):
    output = tmp_path / "file"
    at = words.index("--") if "--" in words else len(words)
    argv = ["serve", "/models/run", "--kind", kind, *words[:at], "--output", str(output), *words[at:]]
    assert guarded("pangu", lambda: main(argv)) == 2
    out, err = capsys.readouterr()
    assert says in err and err.count("\n") == 1 and out == "" and not output.exists()


def test_a_relative_model_is_refused(capsys):
    assert guarded("pangu", lambda: main(["serve", "run", "--kind", "docker"])) == 2
    assert "run: must be an absolute path" in capsys.readouterr().err


def test_a_file_is_written_and_told(capsys, tmp_path):
    path = tmp_path / "serve.yaml"
    told = made(capsys, "kubernetes", *CLAIM, "--memory", "8Gi", "--output", str(path))
    assert told == f"{path}: start it with `kubectl apply -f {path}`\n"
    report = json.loads(made(capsys, "kubernetes", *CLAIM, "--memory", "8Gi", "--json"))
    assert report["text"] == path.read_text() and report["kind"] == "kubernetes" and "image" in report
