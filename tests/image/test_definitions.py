"""The definitions for builds and platforms: their schemas, and their agreement with the code."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from runners import metrics
from runners.settings import KNOWN_ELSEWHERE, PREFIX, Settings
from tests.image import overlay
from tests.patience import scale
from tests.server import ROOT

BIN = Path(sys.executable).parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SCRIPTS = [
    path
    for folder in (".ci", "containerize", "scripts")
    for path in sorted((ROOT / folder).iterdir())
    if path.is_file() and re.match(rb"#!.*sh\n", path.read_bytes())
]
LOCKS = {name: ROOT / "requirements" / f"image-{name}.txt" for name in ("cuda", "cpu", "uv")}
SETTINGS = {PREFIX + name.upper() for name in Settings.model_fields} | set(KNOWN_ELSEWHERE)


def run(*command: str | Path) -> None:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=scale(120),
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_scripts_pass_shellcheck() -> None:
    assert len(SCRIPTS) > 8
    run(BIN / "shellcheck", *SCRIPTS)


def test_workflows_fit_their_schema_and_are_safe() -> None:
    assert WORKFLOWS
    run(BIN / "check-jsonschema", "--builtin-schema", "vendor.github-workflows", *WORKFLOWS)
    run(BIN / "zizmor", "--offline", "--no-progress", "--persona", "pedantic", *WORKFLOWS)


def test_actions_are_pinned_by_commit() -> None:
    for path in WORKFLOWS:
        for action in re.findall(r"uses: (\S+)", path.read_text()):
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action), action


def test_compose_fits_its_schema() -> None:
    run(
        BIN / "check-jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        ROOT / "docker-compose.yml",
    )
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    (device,) = services["foley"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    for service in services.values():
        assert service["read_only"] is True
        assert service["pids_limit"]
        # The ports are open to this machine's browsers, and so to pages that rename their address.
        assert service["environment"]["FOLEY_ALLOWED_HOSTS"]
        assert all("size=" in mount for mount in service["tmpfs"])
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert {name for name in service["environment"] if name.startswith(PREFIX)} <= SETTINGS


@pytest.fixture(scope="module")
def objects() -> dict[str, dict[str, Any]]:
    """The Kubernetes objects by their kind."""
    documents = yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text())
    return {document["kind"]: document for document in documents}


def test_the_deployment_is_restricted_probed_and_has_a_gpu(objects: dict[str, Any]) -> None:
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    resources = container["resources"]
    assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"]
    paths = {
        probe: container[f"{probe}Probe"]["httpGet"]["path"]
        for probe in ("startup", "readiness", "liveness")
    }
    assert paths == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/livez"}
    assert {e["name"] for e in container["env"] if e["name"].startswith(PREFIX)} <= SETTINGS
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}
    dockerfile = (ROOT / "containerize" / "Dockerfile").read_text()
    user = f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}"
    assert f"USER {user}\n" in dockerfile
    # Requests arrive until every node knows that the pod ends; then the service drains for 30 s and
    # the model's process stops within 5 s.
    *_, pause = container["lifecycle"]["preStop"]["exec"]["command"]
    (pause_seconds,) = re.findall(r"sleep\((\d+)\)", pause)
    assert pod["terminationGracePeriodSeconds"] > int(pause_seconds) + 30 + 5


def test_the_guide_makes_the_namespace_first_and_names_what_to_fill_in(
    objects: dict[str, Any],
) -> None:
    guide = (ROOT / "docs" / "guides" / "kubernetes.md").read_text()
    first, *others = re.findall(r"^kubectl .*", guide, re.M)
    assert first == f"kubectl create namespace {objects['Namespace']['metadata']['name']}"
    assert others
    (container,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    empty = [variable["name"] for variable in container["env"] if variable.get("value") == ""]
    assert empty
    for name in ("image", *empty):
        assert f"* `{name}`: " in guide


def test_pods_have_bounded_disks_and_reach_nothing_inside_the_cluster(
    objects: dict[str, Any],
) -> None:
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    assert all(v["emptyDir"].get("sizeLimit") for v in pod["volumes"] if "emptyDir" in v)
    policy = objects["NetworkPolicy"]["spec"]
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"] == labels
    (container,) = pod["containers"]
    (ingress,) = policy["ingress"]
    assert [p["port"] for p in ingress["ports"]] == [p["name"] for p in container["ports"]]
    blocks = [to["ipBlock"] for rule in policy["egress"] for to in rule["to"] if "ipBlock" in to]
    for private in ("10.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"):
        assert all(private in block["except"] for block in blocks)


@pytest.fixture(scope="module")
def fleet() -> dict[str, dict[str, Any]]:
    """The objects of `kubectl apply -k deploy` by their kind."""
    return {document["kind"]: document for document in overlay.build(ROOT / "deploy")}


def sort_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: sort_lists(one) for key, one in value.items()}
    if isinstance(value, list):
        return sorted(map(sort_lists, value), key=lambda one: json.dumps(one, sort_keys=True))
    return value


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_the_fleet_is_what_kubectl_makes(fleet: dict[str, Any]) -> None:
    built = subprocess.run(
        ["kubectl", "kustomize", ROOT / "deploy"], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    documents = list(yaml.safe_load_all(built.stdout))
    assert len(documents) == len(fleet)
    assert sort_lists({one["kind"]: one for one in documents}) == sort_lists(fleet)


def test_a_fleet_is_scaled_by_its_jobs_alone(fleet: dict[str, Any]) -> None:
    assert "HorizontalPodAutoscaler" not in fleet  # KEDA's own would fight with it
    scaled = fleet["ScaledObject"]["spec"]
    assert scaled["scaleTargetRef"]["name"] == fleet["Deployment"]["metadata"]["name"]
    (trigger,) = scaled["triggers"]
    (metric,) = metrics.JOBS.describe()
    assert f"max by (state) ({metric.name}{{" in trigger["metadata"]["query"]
    pod = fleet["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    values = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert {name for name in values if name.startswith(PREFIX)} <= SETTINGS
    # As many jobs as a replica has places for.
    assert int(trigger["metadata"]["threshold"]) == int(values["FOLEY_MAX_CONCURRENCY"]) // 2
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts["jobs"] == values["FOLEY_JOBS_DIR"]
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    ports = {
        port["port"] for rule in fleet["NetworkPolicy"]["spec"]["egress"] for port in rule["ports"]
    }
    assert ports == {53, 443, 5432}


@pytest.fixture(scope="module")
def api() -> dict[str, dict[str, Any]]:
    """The objects of API pods without a model, by their kind."""
    documents = yaml.safe_load_all((ROOT / "deploy" / "api.yaml").read_text())
    return {document["kind"]: document for document in documents}


def test_api_pods_need_no_gpu_and_are_as_restricted_as_the_others(
    api: dict[str, Any], objects: dict[str, Any]
) -> None:
    pod, other = (found["Deployment"]["spec"]["template"]["spec"] for found in (api, objects))
    container = container_of(api)
    values = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert values["FOLEY_MODEL"] == "none"
    assert {name for name in values if name.startswith(PREFIX)} <= SETTINGS
    assert "gpu" not in str(container["resources"])
    for name in (
        "securityContext",
        "automountServiceAccountToken",
        "terminationGracePeriodSeconds",
    ):
        assert pod[name] == other[name]
    for name in ("securityContext", "image", "ports", "lifecycle", "livenessProbe"):
        assert container[name] == container_of(objects)[name]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    assert mounts["jobs"] == values["FOLEY_JOBS_DIR"]
    labels = api["Deployment"]["spec"]["selector"]["matchLabels"]
    # The balancer of the pods with a model must not lead here, nor the other way round.
    assert labels != objects["Deployment"]["spec"]["selector"]["matchLabels"]
    assert api["Deployment"]["spec"]["template"]["metadata"]["labels"] == labels
    assert api["Service"]["spec"]["selector"] == labels
    assert api["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert api["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    scaled = api["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert scaled["name"] == api["Deployment"]["metadata"]["name"]
    namespace = objects["Namespace"]["metadata"]["name"]
    assert {document["metadata"]["namespace"] for document in api.values()} == {namespace}


@pytest.mark.parametrize("which", ["objects", "fleet", "api"])
def test_kubernetes_objects_fit_their_schemas(which: str, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue(which)
    for kind, document in found.items():
        if kind != "ScaledObject":  # of KEDA
            kubernetes_validate.validate(document, "1.30", strict=True)


def test_the_job_with_the_registrys_token_builds_and_pushes_only() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]
    holders = [job for job in jobs.values() if "secrets." in str(job)]
    (holder,) = holders
    assert holder["environment"] == "release"
    assert holder["needs"] == "check"
    assert ".ci/run" not in str(holder)
    assert ".ci/run" in str(jobs["check"])
    assert "environment" not in jobs["check"]


def test_the_objects_names_and_ports_agree(objects: dict[str, Any]) -> None:
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert objects["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert objects["Service"]["spec"]["selector"] == labels
    assert objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    ports = {port["name"] for port in container_of(objects)["ports"]}
    assert {port["targetPort"] for port in objects["Service"]["spec"]["ports"]} <= ports
    scaler = objects["HorizontalPodAutoscaler"]["spec"]
    assert scaler["scaleTargetRef"]["name"] == objects["Deployment"]["metadata"]["name"]
    (metric,) = scaler["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert f'"{name}"' in (ROOT / "runners" / "metrics.py").read_text()
    for kind, document in objects.items():
        if kind != "Namespace":
            assert document["metadata"]["namespace"] == objects["Namespace"]["metadata"]["name"]


def container_of(objects: dict[str, Any]) -> dict[str, Any]:
    container: dict[str, Any] = objects["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    return container


HUB_SCHEMA = {
    "type": "object",
    "required": ["title", "description", "type", "category", "config"],
    "properties": {
        "title": {"type": "string", "minLength": 1},
        "description": {"type": "string", "minLength": 1},
        "type": {"const": "serverless"},
        "category": {"const": "audio"},
        "iconUrl": {"type": "string"},
        "config": {
            "type": "object",
            "required": ["runsOn", "containerDiskInGb"],
            "properties": {
                "runsOn": {"enum": ["GPU", "CPU"]},
                "containerDiskInGb": {"type": "integer", "minimum": 1},
                "gpuCount": {"type": "integer", "minimum": 1},
                "gpuIds": {"type": "string"},
                "allowedCudaVersions": {
                    "type": "array",
                    "items": {"type": "string", "pattern": r"^\d+\.\d+$"},
                },
                "presets": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["name", "defaults"],
                        "properties": {
                            "name": {"type": "string"},
                            "defaults": {"additionalProperties": {"type": "string"}},
                        },
                        "additionalProperties": False,
                    },
                },
                "env": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["key"],
                        "oneOf": [{"required": ["value"]}, {"required": ["input"]}],
                        "properties": {
                            "key": {"type": "string"},
                            "value": {"type": "string"},
                            "input": {
                                "type": "object",
                                "required": ["name", "type"],
                                "properties": {
                                    "type": {"enum": ["string", "number", "boolean"]},
                                },
                            },
                        },
                        "additionalProperties": False,
                    },
                },
            },
            "additionalProperties": False,
        },
    },
    "additionalProperties": False,
}
TESTS_SCHEMA = {
    "type": "object",
    "required": ["tests", "config"],
    "properties": {
        "tests": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["name", "input", "timeout"],
                "properties": {
                    "name": {"type": "string"},
                    "input": {"type": "object"},
                    "timeout": {"type": "integer", "minimum": 1000},
                },
                "additionalProperties": False,
            },
        },
        "config": {
            "type": "object",
            "required": ["gpuTypeId", "gpuCount", "allowedCudaVersions"],
            "properties": {
                "gpuTypeId": {"type": "string"},
                "gpuCount": {"type": "integer"},
                "env": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["key", "value"],
                        "additionalProperties": {"type": "string"},
                    },
                },
                "allowedCudaVersions": {"type": "array", "items": {"type": "string"}},
            },
            "additionalProperties": False,
        },
    },
    "additionalProperties": False,
}


@pytest.mark.parametrize(("name", "schema"), [("hub", HUB_SCHEMA), ("tests", TESTS_SCHEMA)])
def test_the_hubs_files_fit_their_schemas(
    name: str, schema: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(schema))
    run(BIN / "check-jsonschema", "--schemafile", path, ROOT / ".runpod" / f"{name}.json")
    config = json.loads((ROOT / ".runpod" / f"{name}.json").read_text())["config"]
    named = {entry["key"] for entry in config["env"]}
    named |= {key for preset in config.get("presets", []) for key in preset["defaults"]}
    assert named <= SETTINGS
    assert ("FOLEY_ROLE", "queue") in {(e["key"], e.get("value")) for e in config["env"]}


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_of_a_lock_has_a_hash(name: str) -> None:
    lines = LOCKS[name].read_text().splitlines()
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        if re.match(r"[\w.-]+==", line):
            assert line.endswith("\\"), line
            assert after.strip().startswith("--hash=sha256:"), line


def versions(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", path.read_text(), re.MULTILINE))


def test_the_image_has_the_versions_that_the_tests_run_with() -> None:
    tested = versions(ROOT / "requirements" / "dev.txt")
    for name in ("cuda", "cpu"):
        for package, version in versions(LOCKS[name]).items():
            if package in tested and (package, name) not in {
                # Their newest versions need Python 3.12, so dev.txt has one for each Python.
                ("contourpy", "cpu"),
                ("networkx", "cpu"),
            }:
                assert version == tested[package], package
    cuda = versions(LOCKS["cuda"])
    assert cuda["torch"] == "2.8.0"
    assert cuda["nvidia-cuda-runtime-cu12"].startswith("12.8.")
    # Packages of the service, the page and the queue worker.
    assert {"bentoml", "grpcio", "gradio", "runpod", "structlog"} <= cuda.keys()


def test_the_flash_attention_wheel_is_that_of_the_doctor() -> None:
    from foley.hardware.compatibility import FLASH_WHEEL

    script = (ROOT / "containerize" / "flash-attention").read_text()
    assert FLASH_WHEEL.name((3, 12)).replace("+", "%2B") in script
    assert re.search(r"^sha256=[0-9a-f]{64}$", script, re.MULTILINE)


def test_every_entry_of_the_bento_exists() -> None:
    listed = yaml.safe_load((ROOT / "bentofile.yaml").read_text())
    assert listed["docker"]["base_image"] in (ROOT / "containerize" / "Dockerfile").read_text()
    for name in listed["include"]:
        assert list(ROOT.glob(name.rstrip("/"))), name
    assert listed["python"]["lock_packages"] is False


@pytest.mark.parametrize(
    "name", ["internals/image-build.md", "guides/runpod.md", "guides/kubernetes.md"]
)
def test_commands_of_the_documents_name_what_exists(name: str) -> None:
    text = (ROOT / "docs" / name).read_text()
    targets = re.findall(r"^(\S+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert lines
    for line in lines:
        command = line.partition("#")[0]
        for target in re.findall(r"make (\S+)", command):
            assert target in targets, line
        for path in re.findall(r"-f (\S+\.yaml)", command):
            assert (ROOT / path).is_file(), line
        for kind, object_name in re.findall(r"(deployment)/(\S+)", command):
            assert (kind, object_name) == ("deployment", "foley"), line
    for path in re.findall(
        r"`((?:containerize|scripts|requirements|deploy|\.github|\.runpod)/[\w./-]+)`", text
    ):
        assert (ROOT / path).exists(), path


def test_the_entry_points_variables_are_documented() -> None:
    entry_point = (ROOT / "containerize" / "entrypoint").read_text()
    text = (ROOT / "docs" / "guides" / "runpod.md").read_text()
    read = set(re.findall(r"\$\{?((?:FOLEY|PORT|PUBLIC|HEALTH|BENTOML|HF)\w*)", entry_point))
    own = {"FOLEY_HEALTH_PATH", "FOLEY_HEALTH_PORT", "FOLEY_HEALTH_HOST", "BENTOML_HOME"}
    for name in read - own - {"FOLEY_CONTAINER_STARTED", "HF_HUB_CACHE"}:
        assert f"`{name}" in text, name
