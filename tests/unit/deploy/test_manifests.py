"""The Kubernetes manifests: valid for real API servers, and kept to the project's policies.

Everything is checked twice: as `kubectl kustomize` renders it, and as `assemble` reads the files,
which needs no kubectl.
"""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubernetes_validate.utils import all_versions, major_minor

Manifest = dict[str, Any]
Check = Callable[[list[Manifest]], Iterator[str]]
Mutation = Callable[[list[Manifest]], None]

ROOT = Path(__file__).resolve().parents[3]
K8S = ROOT / "deploy" / "k8s"
KUSTOMIZATIONS = sorted(path.parent for path in K8S.rglob("kustomization.yaml"))
BASE = K8S / "base"
GERMAN = K8S / "examples" / "german"
COMPLETE = [BASE, GERMAN]

#: The newest two minor versions that kubernetes-validate carries.
VERSIONS = sorted({tuple(map(int, major_minor(v).split("."))) for v in all_versions()})[-2:]

LABELS = [f"app.kubernetes.io/{name}" for name in ("name", "component", "part-of")]
SECRET_NAME = re.compile(r"KEY|TOKEN|PASSWORD|SECRET|CREDENTIAL", re.IGNORECASE)
LANGUAGE = "UNDERSTUDY_LANGUAGE"
#: Seconds a pod gets to drain, at least: less than Kubernetes' own default is too little.
SHORTEST_GRACE = 30


def read_all(path: Path) -> list[Manifest]:
    return [d for d in yaml.safe_load_all(path.read_text(encoding="utf-8")) if d is not None]


@cache
def _render(directory: Path) -> str:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed; the same files are checked without it")
    done = subprocess.run(
        [kubectl, "kustomize", str(directory)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def render(directory: Path) -> list[Manifest]:
    """What would be applied, according to kubectl."""
    return [d for d in yaml.safe_load_all(_render(directory)) if d is not None]


def assemble(directory: Path) -> list[Manifest]:
    """What would be applied, for the few features of kustomize that the manifests use.

    The names of generated ConfigMaps go without the hash of their content.
    """
    (kustomization,) = read_all(directory / "kustomization.yaml")
    known = {"apiVersion", "kind", "resources", "labels", "images", "configMapGenerator"}
    assert set(kustomization) <= known, f"teach assemble() {set(kustomization) - known}"
    objects: list[Manifest] = []
    for resource in kustomization["resources"]:
        path = (directory / resource).resolve()
        objects += assemble(path) if path.is_dir() else read_all(path)
    for generator in kustomization.get("configMapGenerator", []):
        data = dict(literal.split("=", 1) for literal in generator["literals"])
        if generator.get("behavior") == "merge":
            config = find(objects, "ConfigMap", generator["name"])
            config["data"].update(data)
        else:
            labels = dict(generator.get("options", {}).get("labels", {}))
            metadata = {"name": generator["name"], "labels": labels}
            config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
            objects.append(config)
    for labels in kustomization.get("labels", []):
        for o in objects:
            o["metadata"].setdefault("labels", {}).update(labels["pairs"])
            if labels.get("includeTemplates") and o["kind"] == "Deployment":
                o["spec"]["template"]["metadata"]["labels"].update(labels["pairs"])
    for image in kustomization.get("images", []):
        for _, container in containers(objects):
            if container["image"] == image["name"]:
                container["image"] = f"{image['name']}:{image['newTag']}"
    return objects


def find(objects: list[Manifest], kind: str, name: str) -> Manifest:
    """The one object of a kind whose name is `name`, with or without a generated hash."""
    pattern = re.compile(rf"{re.escape(name)}(-[a-z0-9]{{10}})?")
    (found,) = [
        o for o in objects if o["kind"] == kind and pattern.fullmatch(o["metadata"]["name"])
    ]
    return found


def of_kind(objects: list[Manifest], kind: str) -> list[Manifest]:
    return [o for o in objects if o["kind"] == kind]


def named(o: Manifest) -> str:
    return f"{o['kind']} {o['metadata']['name']}"


def pod(deployment: Manifest) -> Manifest:
    spec: Manifest = deployment["spec"]["template"]["spec"]
    return spec


def pod_labels(deployment: Manifest) -> dict[str, str]:
    labels: dict[str, str] = deployment["spec"]["template"]["metadata"].get("labels", {})
    return labels


def containers(objects: list[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    """Each Deployment with each of its containers."""
    for deployment in of_kind(objects, "Deployment"):
        for kind in ("initContainers", "containers"):
            for container in pod(deployment).get(kind, []):
                yield deployment, container


def ports(container: Manifest) -> dict[str, int]:
    return {p["name"]: p["containerPort"] for p in container.get("ports", [])}


def variables(objects: list[Manifest], container: Manifest) -> dict[str, str | None]:
    """A container's environment; a value that only the cluster knows is None."""
    configs = {c["metadata"]["name"]: c.get("data", {}) for c in of_kind(objects, "ConfigMap")}
    result: dict[str, str | None] = {}
    for source in container.get("envFrom", []):
        result.update(configs.get(source.get("configMapRef", {}).get("name"), {}))
    for variable in container.get("env", []):
        result[variable["name"]] = variable.get("value")
    return result


def option(container: Manifest, flag: str) -> str | None:
    """The value of a command-line option."""
    args: list[str] = container.get("args", [])
    if flag not in args[:-1]:
        return None
    return args[args.index(flag) + 1]


# The checks: each yields what is wrong, in words.


def fits_the_kubernetes_schemas(objects: list[Manifest]) -> Iterator[str]:
    for major, minor in VERSIONS:
        for o in objects:
            try:
                kubernetes_validate.validate(o, f"{major}.{minor}", strict=True)
            except kubernetes_validate.ValidationError as error:
                yield f"{named(o)}, Kubernetes {major}.{minor}: {error.message}"


def runs_as_nobody_special(objects: list[Manifest]) -> Iterator[str]:
    for deployment, container in containers(objects):
        context = pod(deployment).get("securityContext", {}) | container.get("securityContext", {})
        if context.get("runAsNonRoot") is not True:
            yield f"{named(deployment)}: runAsNonRoot isn't true"
        for field in ("runAsUser", "runAsGroup"):
            if not context.get(field):
                yield f"{named(deployment)}: {field} is root's or not given"
        if context.get("privileged") or context.get("allowPrivilegeEscalation") is not False:
            yield f"{named(deployment)}: may gain privileges"
        if context.get("capabilities") != {"drop": ["ALL"]}:
            yield f"{named(deployment)}: keeps capabilities"
        if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{named(deployment)}: no seccomp profile"
        for field in ("hostNetwork", "hostPID", "hostIPC"):
            if pod(deployment).get(field):
                yield f"{named(deployment)}: {field}"


def writes_only_to_temporary_space(objects: list[Manifest]) -> Iterator[str]:
    for deployment, container in containers(objects):
        if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
            yield f"{named(deployment)}: the root filesystem is writable"
        volumes = {v["name"]: v for v in pod(deployment).get("volumes", [])}
        mounts = {m["mountPath"]: volumes.get(m["name"]) for m in container.get("volumeMounts", [])}
        temporary = mounts.get("/tmp")
        if temporary is None or "sizeLimit" not in (temporary.get("emptyDir") or {}):
            yield f"{named(deployment)}: /tmp isn't an emptyDir with a limit"
        for volume in volumes.values():
            if "hostPath" in volume:
                yield f"{named(deployment)}: mounts the host's {volume['hostPath']['path']}"
        environment = variables(objects, container)
        for name in ("HOME", "BENTOML_HOME"):
            value = environment.get(name)
            if value is None or Path("/tmp") not in (Path(value), *Path(value).parents):
                yield f"{named(deployment)}: {name} is {value}, where nothing can be written"


def has_no_account_token(objects: list[Manifest]) -> Iterator[str]:
    accounts = {a["metadata"]["name"]: a for a in of_kind(objects, "ServiceAccount")}
    for deployment in of_kind(objects, "Deployment"):
        if pod(deployment).get("automountServiceAccountToken") is not False:
            yield f"{named(deployment)}: mounts an account's token"
        account = accounts.get(pod(deployment).get("serviceAccountName"))
        if account is None:
            yield f"{named(deployment)}: has no service account of its own"
    for account in accounts.values():
        if account.get("automountServiceAccountToken") is not False:
            yield f"{named(account)}: mounts its token"


def is_probed_on_both_transports(objects: list[Manifest]) -> Iterator[str]:
    for deployment in of_kind(objects, "Deployment"):
        for container in pod(deployment)["containers"]:
            where = f"{named(deployment)}, {container['name']}"
            known = ports(container)
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                asked = container.get(probe, {})
                if "grpc" in asked:
                    if asked["grpc"].get("port") != known.get("grpc"):
                        yield f"{where}: {probe} asks gRPC on a port that isn't its own"
                elif "httpGet" in asked:
                    if asked["httpGet"].get("path") not in ("/livez", "/readyz"):
                        yield f"{where}: {probe} asks {asked['httpGet'].get('path')}"
                    if asked["httpGet"].get("port") not in ("http", known.get("http")):
                        yield f"{where}: {probe} asks HTTP on a port that isn't its own"
                else:
                    yield f"{where}: no {probe}"
            if "grpc" not in container.get("readinessProbe", {}):
                yield f"{where}: readinessProbe isn't a native gRPC probe"
            if container.get("livenessProbe", {}).get("httpGet", {}).get("path") == "/readyz":
                yield f"{where}: a pod that isn't ready would be killed"


def asks_for_what_it_may_take(objects: list[Manifest]) -> Iterator[str]:
    for deployment, container in containers(objects):
        for kind in ("requests", "limits"):
            for resource in ("cpu", "memory"):
                if resource not in container.get("resources", {}).get(kind, {}):
                    yield f"{named(deployment)}, {container['name']}: no {kind} of {resource}"


def pins_its_images(objects: list[Manifest]) -> Iterator[str]:
    for deployment, container in containers(objects):
        image: str = container["image"]
        name = image.rsplit("/", 1)[-1]
        if "@sha256:" in name:
            continue
        tag = name.partition(":")[2]
        if tag in ("", "latest"):
            yield f"{named(deployment)}: image {image} has no fixed tag"


def services_reach_their_pods(objects: list[Manifest]) -> Iterator[str]:
    deployments = of_kind(objects, "Deployment")
    reached: set[str] = set()
    for deployment in deployments:
        if not deployment["spec"]["selector"]["matchLabels"].items() <= (
            pod_labels(deployment).items()
        ):
            yield f"{named(deployment)}: selects other pods than its own"
    for service in of_kind(objects, "Service"):
        selector = service["spec"].get("selector") or {}
        chosen = [d for d in deployments if selector and selector.items() <= pod_labels(d).items()]
        if len(chosen) != 1:
            yield f"{named(service)}: selects the pods of {len(chosen)} deployments"
            continue
        (deployment,) = chosen
        reached.add(named(deployment))
        known = [p for c in pod(deployment)["containers"] for p in ports(c).items()]
        by_name = dict(known)
        for port in service["spec"]["ports"]:
            target = port.get("targetPort", port["port"])
            number = by_name.get(target) if isinstance(target, str) else target
            if number not in by_name.values():
                yield f"{named(service)}: target port {target} doesn't exist"
            elif port["port"] != number or port["name"] != target:
                yield f"{named(service)}: port {port['name']} {port['port']} leads to {target}"
        if {p["name"] for p in service["spec"]["ports"]} != {"http", "grpc"}:
            yield f"{named(service)}: doesn't offer both HTTP and gRPC"
    for deployment in deployments:
        if named(deployment) not in reached:
            yield f"{named(deployment)}: has no service"


def budgets_allow_evictions(objects: list[Manifest]) -> Iterator[str]:
    deployments = of_kind(objects, "Deployment")
    for budget in of_kind(objects, "PodDisruptionBudget"):
        selector = budget["spec"]["selector"]["matchLabels"]
        chosen = [d for d in deployments if selector.items() <= pod_labels(d).items()]
        if len(chosen) != 1:
            yield f"{named(budget)}: selects the pods of {len(chosen)} deployments"
        for deployment in chosen:
            if deployment["spec"].get("replicas", 1) < 2:
                yield f"{named(budget)}: {named(deployment)} has one pod only"
        if budget["spec"].get("maxUnavailable") in (0, "0%", None):
            yield f"{named(budget)}: no pod may ever be evicted"


def holds_no_secrets(objects: list[Manifest]) -> Iterator[str]:
    for secret in of_kind(objects, "Secret"):
        yield f"{named(secret)}: a secret is written in the manifests"
    for config in of_kind(objects, "ConfigMap"):
        for name in config.get("data", {}):
            if SECRET_NAME.search(name):
                yield f"{named(config)}: {name} belongs in a Secret"
    for deployment, container in containers(objects):
        for variable in container.get("env", []):
            if not SECRET_NAME.search(variable["name"]):
                continue
            if "secretKeyRef" not in variable.get("valueFrom", {}):
                yield f"{named(deployment)}: {variable['name']} isn't taken from a Secret"
        for argument in container.get("args", []):
            if SECRET_NAME.search(argument):
                yield f"{named(deployment)}: argument {argument} shows in the process list"


def takes_its_ports_from_its_arguments(objects: list[Manifest]) -> Iterator[str]:
    for deployment in of_kind(objects, "Deployment"):
        for container in pod(deployment)["containers"]:
            known = ports(container)
            for name, flag in (("http", "--port"), ("grpc", "--grpc-port")):
                if str(known.get(name)) != option(container, flag):
                    yield (
                        f"{named(deployment)}: port {name} is {known.get(name)}, but {flag} is "
                        f"{option(container, flag)}"
                    )
            if option(container, "--host") != "0.0.0.0":
                yield f"{named(deployment)}: doesn't listen to the cluster"


def finds_its_configuration(objects: list[Manifest]) -> Iterator[str]:
    configs = {c["metadata"]["name"] for c in of_kind(objects, "ConfigMap")}
    for deployment, container in containers(objects):
        if pod(deployment).get("enableServiceLinks") is not False:
            yield f"{named(deployment)}: service links would mix with its own variables"
        for source in container.get("envFrom", []):
            if source.get("configMapRef", {}).get("name") not in configs:
                yield f"{named(deployment)}: takes variables from {source}, which isn't here"
        # The student's command leaves its language to the environment.
        if "student" in container["args"] and not variables(objects, container).get(LANGUAGE):
            yield f"{named(deployment)}: {LANGUAGE} has no value"


def bears_the_recommended_labels(objects: list[Manifest]) -> Iterator[str]:
    for o in objects:
        for label in LABELS:
            if label not in o["metadata"].get("labels", {}):
                yield f"{named(o)}: no label {label}"
            if o["kind"] == "Deployment" and label not in pod_labels(o):
                yield f"{named(o)}: its pods have no label {label}"


def rolls_without_a_gap(objects: list[Manifest]) -> Iterator[str]:
    for deployment in of_kind(objects, "Deployment"):
        strategy = deployment["spec"].get("strategy", {})
        rolling = strategy.get("rollingUpdate", {})
        if strategy.get("type") != "RollingUpdate" or rolling.get("maxUnavailable") != 0:
            yield f"{named(deployment)}: a rollout may take a pod away before its successor serves"
        if pod(deployment).get("terminationGracePeriodSeconds", 30) < SHORTEST_GRACE:
            yield f"{named(deployment)}: is killed while it drains"


CHECKS: list[Check] = [
    fits_the_kubernetes_schemas,
    runs_as_nobody_special,
    writes_only_to_temporary_space,
    has_no_account_token,
    is_probed_on_both_transports,
    asks_for_what_it_may_take,
    pins_its_images,
    services_reach_their_pods,
    budgets_allow_evictions,
    holds_no_secrets,
    takes_its_ports_from_its_arguments,
    finds_its_configuration,
    bears_the_recommended_labels,
    rolls_without_a_gap,
]


def label_of(value: object) -> str:
    if isinstance(value, Path):
        return value.relative_to(K8S).as_posix()
    return getattr(value, "__name__", str(value))


@pytest.mark.parametrize("check", CHECKS, ids=label_of)
@pytest.mark.parametrize("directory", COMPLETE, ids=label_of)
def test_what_kubectl_renders_passes(directory: Path, check: Check) -> None:
    assert list(check(render(directory))) == []


@pytest.mark.parametrize("check", CHECKS, ids=label_of)
@pytest.mark.parametrize("directory", COMPLETE, ids=label_of)
def test_the_files_pass_without_kubectl(directory: Path, check: Check) -> None:
    assert list(check(assemble(directory))) == []


@pytest.mark.parametrize("directory", KUSTOMIZATIONS, ids=label_of)
def test_every_kustomization_renders_as_it_is_assembled_here(directory: Path) -> None:
    rendered = yaml.safe_dump(render(directory), sort_keys=True)
    hashed = re.compile(r"(name: understudy-(?:student|generator))-[a-z0-9]{10}$", re.MULTILINE)

    def key(o: Manifest) -> tuple[str, str]:
        return o["kind"], o["metadata"]["name"]

    unhashed: list[Manifest] = yaml.safe_load(hashed.sub(r"\1", rendered))
    assert sorted(unhashed, key=key) == sorted(assemble(directory), key=key)


def test_every_manifest_is_part_of_a_kustomization() -> None:
    used = {
        (directory / resource).resolve()
        for directory in KUSTOMIZATIONS
        for resource in read_all(directory / "kustomization.yaml")[0]["resources"]
    }
    manifests = {p for p in K8S.rglob("*.yaml") if p.name != "kustomization.yaml"}
    assert manifests
    assert manifests <= used


def test_the_schemas_are_of_two_minor_versions() -> None:
    assert len(VERSIONS) == 2


def test_the_base_runs_one_student_and_the_proxy() -> None:
    found = {(o["kind"], o["metadata"]["name"]) for o in assemble(BASE)}
    for kind in ("Deployment", "Service", "ServiceAccount", "ConfigMap"):
        for name in ("understudy-student", "understudy-generator"):
            assert (kind, name) in found
    assert not any("/" in container["image"] for _, container in containers(assemble(BASE)))


def test_the_commands_are_those_of_the_command_line() -> None:
    objects = assemble(BASE)
    for role, rest in (
        ("student", ["--bundles", "/bundles"]),
        ("generator", []),
    ):
        (container,) = pod(find(objects, "Deployment", f"understudy-{role}"))["containers"]
        assert container["command"] == ["understudy"]
        assert container["args"][: 2 + len(rest)] == ["serve", role, *rest]


def test_the_generators_settings_are_those_that_the_proxy_reads() -> None:
    objects = assemble(BASE)
    (container,) = pod(find(objects, "Deployment", "understudy-generator"))["containers"]
    environment = variables(objects, container)
    assert environment["UNDERSTUDY_GENERATOR_BASE_URL"]
    assert environment["UNDERSTUDY_GENERATOR_MODEL"]
    (key,) = [v for v in container["env"] if v["name"] == "UNDERSTUDY_GENERATOR_API_KEY"]
    reference = {"name": "understudy-generator", "key": "api-key", "optional": True}
    assert key["valueFrom"] == {"secretKeyRef": reference}


def test_the_language_is_named_in_one_place() -> None:
    lines = [
        line
        for path in BASE.rglob("*.yaml")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"\bsw\b", line)
    ]
    assert [line.strip() for line in lines] == ["- UNDERSTUDY_LANGUAGE=sw"]


def test_another_language_changes_nothing_but_the_language() -> None:
    base, german = assemble(BASE), assemble(GERMAN)
    config = find(german, "ConfigMap", "understudy-student")
    assert config["data"]["UNDERSTUDY_LANGUAGE"] == "de"
    config["data"]["UNDERSTUDY_LANGUAGE"] = "sw"
    assert german == base


def test_another_language_rolls_the_students_and_leaves_the_proxy() -> None:
    base, german = render(BASE), render(GERMAN)
    student, generator = "understudy-student", "understudy-generator"
    assert find(base, "Deployment", student) != find(german, "Deployment", student)
    assert find(base, "Deployment", generator) == find(german, "Deployment", generator)


@pytest.mark.parametrize("directory", COMPLETE, ids=label_of)
def test_the_language_has_students(directory: Path) -> None:
    (topic,) = read_all(ROOT / "tasks" / "topic.yaml")
    config = find(assemble(directory), "ConfigMap", "understudy-student")
    assert config["data"]["UNDERSTUDY_LANGUAGE"] in topic["languages"]


# The checks can fail: each mutation breaks one thing, and its check says so.


def at(kind: str, path: str, value: Any = None, *, role: str = "student") -> Mutation:
    """Set the value at a dotted path of an object; None takes it away."""

    def mutate(objects: list[Manifest]) -> None:
        target: Any = find(objects, kind, f"understudy-{role}")
        *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
        for step in way:
            target = target[step]
        if value is None:
            del target[last]
        else:
            target[last] = value

    return mutate


def in_pod(path: str, value: Any = None, *, role: str = "student") -> Mutation:
    return at("Deployment", f"spec.template.spec.{path}", value, role=role)


def in_container(path: str, value: Any = None, *, role: str = "student") -> Mutation:
    return in_pod(f"containers.0.{path}", value, role=role)


def without(kind: str, role: str = "student") -> Mutation:
    def mutate(objects: list[Manifest]) -> None:
        objects.remove(find(objects, kind, f"understudy-{role}"))

    return mutate


def with_secret(objects: list[Manifest]) -> None:
    metadata = {"name": "understudy-generator", "labels": {}}
    data = {"api-key": "hunter2"}
    objects.append({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data})


NAME = "app.kubernetes.io/name"
MUTATIONS: list[tuple[Check, str, Mutation, str]] = [
    (
        fits_the_kubernetes_schemas,
        "misspelt field",
        in_container("livenesProbe", {}),
        "livenesProbe",
    ),
    (
        fits_the_kubernetes_schemas,
        "number as text",
        in_container("ports.0.containerPort", "3000"),
        "3000",
    ),
    (
        fits_the_kubernetes_schemas,
        "argument as number",
        in_container("args", ["--port", 3000]),
        "3000",
    ),
    (fits_the_kubernetes_schemas, "no selector", at("Deployment", "spec.selector"), "selector"),
    (
        runs_as_nobody_special,
        "may be root",
        in_pod("securityContext.runAsNonRoot", False),
        "runAsNonRoot",
    ),
    (
        runs_as_nobody_special,
        "no word on root",
        in_pod("securityContext.runAsNonRoot"),
        "runAsNonRoot",
    ),
    (runs_as_nobody_special, "user 0", in_pod("securityContext.runAsUser", 0), "runAsUser"),
    (runs_as_nobody_special, "no group", in_pod("securityContext.runAsGroup"), "runAsGroup"),
    (
        runs_as_nobody_special,
        "container overrides the pod",
        in_container("securityContext.runAsUser", 0),
        "runAsUser",
    ),
    (
        runs_as_nobody_special,
        "escalation",
        in_container("securityContext.allowPrivilegeEscalation"),
        "privileges",
    ),
    (
        runs_as_nobody_special,
        "privileged",
        in_container("securityContext.privileged", True),
        "privileges",
    ),
    (
        runs_as_nobody_special,
        "capabilities kept",
        in_container("securityContext.capabilities.drop", ["NET_RAW"]),
        "capabilities",
    ),
    (
        runs_as_nobody_special,
        "capability added",
        in_container("securityContext.capabilities.add", ["SYS_ADMIN"], role="generator"),
        "capabilities",
    ),
    (
        runs_as_nobody_special,
        "no seccomp",
        in_pod("securityContext.seccompProfile", {"type": "Unconfined"}),
        "seccomp",
    ),
    (runs_as_nobody_special, "host network", in_pod("hostNetwork", True), "hostNetwork"),
    (
        writes_only_to_temporary_space,
        "writable root",
        in_container("securityContext.readOnlyRootFilesystem", False),
        "writable",
    ),
    (writes_only_to_temporary_space, "no /tmp", in_container("volumeMounts", []), "/tmp"),
    (
        writes_only_to_temporary_space,
        "/tmp without limit",
        in_pod("volumes.0.emptyDir", {}),
        "/tmp",
    ),
    (
        writes_only_to_temporary_space,
        "host path",
        in_pod("volumes.0", {"name": "tmp", "hostPath": {"path": "/var"}}),
        "/var",
    ),
    (
        writes_only_to_temporary_space,
        "home not writable",
        in_container("env.0.value", "/home/understudy"),
        "HOME",
    ),
    (
        has_no_account_token,
        "token in the pod",
        in_pod("automountServiceAccountToken"),
        "mounts an account's token",
    ),
    (
        has_no_account_token,
        "token of the account",
        at("ServiceAccount", "automountServiceAccountToken", True),
        "mounts its token",
    ),
    (has_no_account_token, "default account", in_pod("serviceAccountName"), "of its own"),
    (has_no_account_token, "account missing", without("ServiceAccount"), "of its own"),
    (
        is_probed_on_both_transports,
        "no startup probe",
        in_container("startupProbe"),
        "no startupProbe",
    ),
    (
        is_probed_on_both_transports,
        "no liveness probe",
        in_container("livenessProbe", role="generator"),
        "no livenessProbe",
    ),
    (
        is_probed_on_both_transports,
        "readiness over HTTP",
        in_container("readinessProbe", {"httpGet": {"path": "/readyz", "port": "http"}}),
        "native gRPC",
    ),
    (
        is_probed_on_both_transports,
        "gRPC on the HTTP port",
        in_container("readinessProbe.grpc.port", 3000),
        "isn't its own",
    ),
    (
        is_probed_on_both_transports,
        "HTTP on the gRPC port",
        in_container("livenessProbe.httpGet.port", "grpc"),
        "isn't its own",
    ),
    (
        is_probed_on_both_transports,
        "no such path",
        in_container("livenessProbe.httpGet.path", "/healthz"),
        "/healthz",
    ),
    (
        is_probed_on_both_transports,
        "killed when not ready",
        in_container("livenessProbe.httpGet.path", "/readyz"),
        "killed",
    ),
    (
        asks_for_what_it_may_take,
        "no limits",
        in_container("resources.limits"),
        "no limits of cpu",
    ),
    (
        asks_for_what_it_may_take,
        "no memory limit",
        in_container("resources.limits.memory", role="generator"),
        "no limits of memory",
    ),
    (
        asks_for_what_it_may_take,
        "no requests",
        in_container("resources.requests"),
        "no requests of memory",
    ),
    (pins_its_images, "latest", in_container("image", "understudy-student:latest"), "latest"),
    (pins_its_images, "no tag", in_container("image", "understudy-student"), "no fixed tag"),
    (
        pins_its_images,
        "registry's port is no tag",
        in_container("image", "registry:5000/understudy-student"),
        "no fixed tag",
    ),
    (
        services_reach_their_pods,
        "selects nothing",
        at("Service", "spec.selector", {NAME: "understudy-pupil"}),
        "0 deployments",
    ),
    (
        services_reach_their_pods,
        "selects everything",
        at("Service", "spec.selector", {"app.kubernetes.io/part-of": "understudy"}),
        "2 deployments",
    ),
    (
        services_reach_their_pods,
        "no selector",
        at("Service", "spec.selector"),
        "0 deployments",
    ),
    (
        services_reach_their_pods,
        "no such target",
        at("Service", "spec.ports.1.targetPort", "rpc"),
        "rpc doesn't exist",
    ),
    (
        services_reach_their_pods,
        "no such number",
        at("Service", "spec.ports.0.targetPort", 8080),
        "8080 doesn't exist",
    ),
    (
        services_reach_their_pods,
        "ports crossed",
        at("Service", "spec.ports.0.targetPort", "grpc"),
        "leads to grpc",
    ),
    (services_reach_their_pods, "HTTP only", at("Service", "spec.ports.1"), "both HTTP and gRPC"),
    (services_reach_their_pods, "no service", without("Service", "generator"), "no service"),
    (
        services_reach_their_pods,
        "pods of another name",
        at("Deployment", "spec.template.metadata.labels", {NAME: "understudy-pupil"}),
        "other pods than its own",
    ),
    (
        budgets_allow_evictions,
        "selects nothing",
        at("PodDisruptionBudget", "spec.selector.matchLabels", {NAME: "understudy-pupil"}),
        "0 deployments",
    ),
    (
        budgets_allow_evictions,
        "none may go",
        at("PodDisruptionBudget", "spec.maxUnavailable", 0),
        "ever be evicted",
    ),
    (
        budgets_allow_evictions,
        "one pod",
        at("Deployment", "spec.replicas", 1),
        "one pod only",
    ),
    (holds_no_secrets, "a secret in the files", with_secret, "written in the manifests"),
    (
        holds_no_secrets,
        "a key in the configuration",
        at("ConfigMap", "data.UNDERSTUDY_GENERATOR_API_KEY", "hunter2", role="generator"),
        "belongs in a Secret",
    ),
    (
        holds_no_secrets,
        "a key in the environment",
        in_container(
            "env.0",
            {"name": "UNDERSTUDY_GENERATOR_API_KEY", "value": "hunter2"},
            role="generator",
        ),
        "isn't taken from a Secret",
    ),
    (
        holds_no_secrets,
        "a key in the arguments",
        in_container("args.0", "--api-key=hunter2"),
        "process list",
    ),
    (
        takes_its_ports_from_its_arguments,
        "other HTTP port",
        in_container("ports.0.containerPort", 8080),
        "port http is 8080",
    ),
    (
        takes_its_ports_from_its_arguments,
        "other gRPC port",
        in_container("args", ["serve", "generator", "--grpc-port", "50051"], role="generator"),
        "--grpc-port is 50051",
    ),
    (
        takes_its_ports_from_its_arguments,
        "listens to itself",
        in_container("args", ["--host", "127.0.0.1", "--port", "3000", "--grpc-port", "50051"]),
        "listen",
    ),
    (
        finds_its_configuration,
        "service links",
        in_pod("enableServiceLinks", role="generator"),
        "service links",
    ),
    (finds_its_configuration, "no ConfigMap", without("ConfigMap"), "which isn't here"),
    (
        finds_its_configuration,
        "no language",
        at("ConfigMap", "data.UNDERSTUDY_LANGUAGE"),
        "UNDERSTUDY_LANGUAGE has no value",
    ),
    (
        bears_the_recommended_labels,
        "object without",
        at("Service", "metadata.labels"),
        f"no label {NAME}",
    ),
    (
        bears_the_recommended_labels,
        "pods without",
        at("Deployment", "spec.template.metadata.labels", {NAME: "understudy-student"}),
        "its pods have no label",
    ),
    (
        rolls_without_a_gap,
        "recreated",
        at("Deployment", "spec.strategy", {"type": "Recreate"}),
        "before its successor",
    ),
    (
        rolls_without_a_gap,
        "one may be missing",
        at("Deployment", "spec.strategy.rollingUpdate.maxUnavailable", 1),
        "before its successor",
    ),
    (
        rolls_without_a_gap,
        "no time to drain",
        in_pod("terminationGracePeriodSeconds", 5),
        "while it drains",
    ),
]


@pytest.mark.parametrize(
    ("check", "mutate", "complaint"),
    [
        pytest.param(check, mutate, complaint, id=f"{check.__name__}: {what}")
        for check, what, mutate, complaint in MUTATIONS
    ],
)
def test_a_broken_manifest_is_caught(check: Check, mutate: Mutation, complaint: str) -> None:
    objects = copy.deepcopy(assemble(BASE))
    mutate(objects)
    assert any(complaint in said for said in check(objects)), list(check(objects))


def test_every_check_can_fail() -> None:
    assert {check for check, *_ in MUTATIONS} == set(CHECKS)
