"""kuberay.yaml is what KubeRay and Kubernetes take, field by field: names, types, and what has to be there.

Pods are compared with the models of Kubernetes' own Python client, which are made from its OpenAPI document, and what
stands around them with the table below. No cluster read the file here.
"""

import json
import re
from datetime import datetime
from pathlib import Path

import pytest
import yaml
from kubernetes import client
from kubernetes.utils import parse_quantity

MANIFEST = Path(__file__).resolve().parents[2] / "cluster" / "kuberay.yaml"

# KubeRay 1.6.2, ray-operator/apis/ray/v1 (rayjob_types.go, raycluster_types.go) without the fields of the autoscaler,
# Redis and deletion rules; ! has to be there, (...) are the values there are, V1... are models of Kubernetes' client.
# All that kuberay.yaml uses is in 1.5.1 already, whose authOptions has `mode` alone.
KUBERAY = {
    "RayJob": {"apiVersion!": ("ray.io/v1",), "kind!": ("RayJob",), "metadata!": "V1ObjectMeta", "spec!": "RayJobSpec"},
    "RayJobSpec": {
        "activeDeadlineSeconds": "int",
        "backoffLimit": "int",
        "clusterSelector": "Dict[str, str]",
        "entrypoint": "str",
        "entrypointNumCpus": "float",
        "entrypointNumGpus": "float",
        "entrypointResources": "str",
        "jobId": "str",
        "managedBy": ("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"),
        "metadata": "Dict[str, str]",
        "preRunningDeadlineSeconds": "int",
        "rayClusterSpec": "RayClusterSpec",
        "runtimeEnvYAML": "str",
        "shutdownAfterJobFinishes": "bool",
        "submissionMode": ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
        "submitterConfig": "SubmitterConfig",
        "submitterPodTemplate": "V1PodTemplateSpec",
        "suspend": "bool",
        "ttlSecondsAfterFinished": "int",
    },
    "SubmitterConfig": {"backoffLimit": "int"},
    "RayClusterSpec": {
        "authOptions": "AuthOptions",
        "enableInTreeAutoscaling": "bool",
        "headGroupSpec!": "HeadGroupSpec",
        "headServiceAnnotations": "Dict[str, str]",
        "managedBy": ("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"),
        "rayVersion": "str",
        "suspend": "bool",
        "workerGroupSpecs": "List[WorkerGroupSpec]",
    },
    "AuthOptions": {"enableK8sTokenAuth": "bool", "mode": ("disabled", "token"), "secretName": "str"},
    "HeadGroupSpec": {
        "enableIngress": "bool",
        "headService": "V1Service",
        "labels": "Dict[str, str]",
        "rayStartParams": "Dict[str, str]",
        "resources": "Dict[str, str]",
        "serviceType": "str",
        "template!": "V1PodTemplateSpec",
    },
    "WorkerGroupSpec": {
        "groupName!": "str",
        "idleTimeoutSeconds": "int",
        "labels": "Dict[str, str]",
        "maxReplicas!": "int",
        "minReplicas!": "int",
        "numOfHosts": "int",
        "rayStartParams": "Dict[str, str]",
        "replicas": "int",
        "resources": "Dict[str, str]",
        "scaleStrategy": "ScaleStrategy",
        "suspend": "bool",
        "template!": "V1PodTemplateSpec",
    },
    "ScaleStrategy": {"workersToDelete": "List[str]"},
}
# the client calls a quantity a str
QUANTITIES = {name: "Dict[str, quantity]" for name in ("limits", "requests", "overhead")}
QUANTITIES |= {name: "quantity" for name in ("divisor", "sizeLimit")}
SCALARS = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "datetime": (datetime, str),
    "object": (int, str),  # the client's word for a port's number or name
    "quantity": (int, float, str),
}


def fields(kind):
    """{name in the file: (its type, whether it has to be there)} of an object."""
    if kind in KUBERAY:
        return {name.rstrip("!"): (of, name.endswith("!")) for name, of in KUBERAY[kind].items()}
    model = getattr(client, kind)
    needed = {field.serialization_alias or own for own, field in model.model_fields.items() if field.is_required()}
    return {
        name: (QUANTITIES.get(name, model.openapi_types[own]), name in needed)
        for own, name in model.attribute_map.items()
    }


def is_quantity(value):
    try:
        parse_quantity(value)
    except ValueError:
        return False
    return True


def problems(value, kind, path):
    """All that keeps `value` from being of this kind, each as "path: what"."""
    if isinstance(kind, tuple):
        return [] if value in kind else [f"{path}: {value!r} is none of {', '.join(kind)}"]
    if kind in SCALARS:
        right = type(value) in SCALARS[kind]  # a bool is no number
        return [] if right and (kind != "quantity" or is_quantity(value)) else [f"{path}: {value!r} is no {kind}"]
    many = re.fullmatch(r"(List|Dict)\[(?:str, )?(\w+)\]", kind)
    if not isinstance(value, list if many and many[1] == "List" else dict):
        return [f"{path}: {value!r} is no {kind}"]
    if many:
        parts = enumerate(value) if many[1] == "List" else value.items()
        return [problem for name, part in parts for problem in problems(part, many[2], f"{path}.{name}")]
    known = fields(kind)
    found = [f"{path}: no {name}" for name, (_, needed) in known.items() if needed and value.get(name) is None]
    for name, part in value.items():
        if name not in known:
            found.append(f"{path}.{name}: no field of {kind}")
        elif part is not None:  # null is as good as nothing
            found += problems(part, known[name][0], f"{path}.{name}")
    return found


@pytest.fixture
def job():
    # as JSON, as it is sent: what YAML's anchors share is apart
    return json.loads(json.dumps(yaml.safe_load(MANIFEST.read_text())))


def test_the_manifest_is_a_ray_job(job):
    assert problems(job, "RayJob", "") == []


HEAD = ".spec.rayClusterSpec.headGroupSpec.template.spec"
WORKERS = ".spec.rayClusterSpec.workerGroupSpecs.0"
GONE = object()


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        # misspelt
        (f"{HEAD}.containers.0.volumeMounts.0.mountpath", "/shared", "mountpath: no field of V1VolumeMount"),
        (f"{HEAD}.containers.0.volume_mounts", [], "volume_mounts: no field of V1Container"),
        (
            f"{HEAD}.volumes.0.persistentVolumeClaim.claim",
            "a",
            "claim: no field of V1PersistentVolumeClaimVolumeSource",
        ),
        (".spec.rayClusterSpec.authOption", {}, "authOption: no field of RayClusterSpec"),
        (
            ".spec.submissionMode",
            "K8SJobMode",
            "'K8SJobMode' is none of K8sJobMode, HTTPMode, InteractiveMode, SidecarMode",
        ),
        (".spec.rayClusterSpec.authOptions.mode", "tokens", "'tokens' is none of disabled, token"),
        # of another type
        (f"{HEAD}.containers.0.env.0.value", True, "True is no str"),
        (f"{HEAD}.containers.0.env", {"A": "b"}, "{'A': 'b'} is no List[V1EnvVar]"),
        (f"{HEAD}.containers.0.resources.limits.memory", "16 Gigabytes", "'16 Gigabytes' is no quantity"),
        (f"{HEAD}.containers.0.command", ["sleep", 60], "60 is no str"),
        (".spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", 0, "0 is no str"),
        (".spec.rayClusterSpec.rayVersion", 2.6, "2.6 is no str"),
        (".spec.backoffLimit", "2", "'2' is no int"),
        (f"{WORKERS}.replicas", True, "True is no int"),
        (f"{WORKERS}.template", "gpus", "'gpus' is no V1PodTemplateSpec"),
        # not there
        (f"{HEAD}.containers", GONE, "no containers"),
        (f"{HEAD}.containers.0.name", GONE, "no name"),
        (f"{HEAD}.volumes.0.persistentVolumeClaim.claimName", None, "no claimName"),
        (f"{WORKERS}.groupName", GONE, "no groupName"),
        (".spec.rayClusterSpec.headGroupSpec", GONE, "no headGroupSpec"),
        (".kind", GONE, "no kind"),
    ],
)
def test_a_mistake_is_found_and_its_place_named(job, place, value, told):
    *way, last = [int(word) if word.isdigit() else word for word in place.split(".")[1:]]
    part = job
    for word in way:
        part = part[word]
    if value is GONE:
        del part[last]
    else:
        part[last] = value
    (problem,) = problems(job, "RayJob", "")
    where = place.rpartition(".")[0] if told.startswith("no ") else place
    assert problem.startswith(where) and problem.endswith(told)


@pytest.mark.parametrize(("place", "value"), [("limits", {"cpu": 4, "memory": "1.5Gi"}), ("requests", {"cpu": 0.5})])
def test_quantities_may_be_numbers(job, place, value):
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["resources"][place] = value
    assert problems(job, "RayJob", "") == []


@pytest.mark.parametrize("port", [8265, "dashboard"])
def test_a_port_is_a_number_or_a_name(job, port):
    container = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    container["readinessProbe"] = {"httpGet": {"path": "/", "port": port}}
    assert problems(job, "RayJob", "") == []
    container["readinessProbe"]["httpGet"]["port"] = 82.65
    assert len(problems(job, "RayJob", "")) == 1


def test_the_manifest_asks_for_32_gpus_and_mounts_what_it_names(job):
    cluster = job["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], workers)]
    for pod in pods:
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
    (worker,) = pods[1]["containers"]
    assert workers["replicas"] * int(worker["resources"]["limits"]["nvidia.com/gpu"]) == 32
    # KubeRay refuses a token for an older Ray
    assert cluster["authOptions"]["mode"] == "token"
    assert tuple(map(int, cluster["rayVersion"].split("."))) >= (2, 52)
