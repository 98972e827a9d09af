"""Shapes of the resources that `pangu manifest` writes, and of a Dockerfile and an sbatch script: field names and
types, strict on unknown ones.

Sources: CustomResourceDefinition ascendjobs.mindxdl.gitee.com (MindCluster's ascend-operator.yaml),
jobs.batch.volcano.sh (Volcano's config/crd), Kubernetes' PodSpec, Deployment and Service; the Dockerfile
reference; sbatch's manual.
"""

import re
import shlex

QUANTITY = re.compile(r"([0-9]+(\.[0-9]*)?)([KMGTPE]i|[numkMGTPE])?")
NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


class Map:
    """A map with free keys."""

    def __init__(self, of):
        self.of = of


class Fields:
    """A map with known keys; those that end with _ here are required."""

    def __init__(self, **fields):
        self.required = {name[:-1] for name in fields if name.endswith("_")}
        self.fields = {name.rstrip("_"): shape for name, shape in fields.items()}


def faults(value, shape, place="$"):
    """What of a loaded document does not have the shape: lines of text."""
    if isinstance(shape, Fields):
        if not isinstance(value, dict):
            return [f"{place}: not a map"]
        missing = [f"{place}.{name}: missing" for name in shape.required - value.keys()]
        unknown = [f"{place}.{name}: unknown" for name in value.keys() - shape.fields.keys()]
        return (
            missing
            + unknown
            + [
                f
                for name in value.keys() & shape.fields.keys()
                for f in faults(value[name], shape.fields[name], f"{place}.{name}")
            ]
        )
    if isinstance(shape, Map):
        return [
            f for key, item in value.items() for f in faults(key, str, place) + faults(item, shape.of, f"{place}.{key}")
        ]
    if isinstance(shape, list):
        items = value if isinstance(value, list) and value else [None]
        return [f for i, item in enumerate(items) for f in faults(item, shape[0], f"{place}[{i}]")]
    if isinstance(shape, (set, frozenset)):
        return [] if value in shape else [f"{place}: {value!r} is none of {sorted(shape)}"]
    if isinstance(shape, re.Pattern):
        return (
            []
            if re.fullmatch(shape, str(value)) and not isinstance(value, bool)
            else [f"{place}: {value!r} does not match {shape.pattern}"]
        )
    return [] if type(value) is shape else [f"{place}: {value!r} is no {shape.__name__}"]


EXPRESSION = Fields(key_=str, operator_={"In", "NotIn", "Exists", "DoesNotExist"}, values=[str])
TERM = Fields(labelSelector=Fields(matchExpressions=[EXPRESSION]), topologyKey_=str)
VARIABLE = Fields(
    name_=re.compile(r"[A-Za-z_]\w*"),
    value=str,
    valueFrom=Fields(fieldRef=Fields(fieldPath_=str), secretKeyRef=Fields(name_=NAME, key_=str)),
)
QUANTITIES = Map(QUANTITY)
CONTAINER = Fields(
    name_={"ascend"},
    image_=str,
    imagePullPolicy={"Always", "IfNotPresent", "Never"},
    command=[str],
    args=[str],
    env=[VARIABLE],
    ports=[Fields(name=re.compile("[a-z0-9-]{1,15}"), containerPort_=int)],
    resources=Fields(limits=QUANTITIES, requests=QUANTITIES),
    volumeMounts=[Fields(name_=NAME, mountPath_=re.compile("[^:]+"), readOnly=bool)],
)
VOLUME = Fields(name_=NAME, hostPath=Fields(path_=str), emptyDir=Fields(medium={"Memory"}, sizeLimit=QUANTITY))
POD = Fields(
    restartPolicy={"Never"},
    terminationGracePeriodSeconds=int,
    hostNetwork=bool,
    dnsPolicy={"ClusterFirstWithHostNet"},
    nodeSelector=Map(str),
    affinity=Fields(podAntiAffinity=Fields(requiredDuringSchedulingIgnoredDuringExecution=[TERM])),
    containers_=[CONTAINER],
    volumes=[VOLUME],
)
TEMPLATE = Fields(metadata=Fields(labels=Map(str)), spec_=POD)
METADATA = Fields(name_=re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?"), namespace=NAME, labels=Map(str))
REPLICAS = Fields(replicas_=int, restartPolicy_={"Always", "OnFailure", "Never", "ExitCode"}, template_=TEMPLATE)
ASCENDJOB = Fields(
    apiVersion_={"mindxdl.gitee.com/v1"},
    kind_={"AscendJob"},
    metadata_=METADATA,
    spec_=Fields(
        schedulerName=str,
        successPolicy={"", "AllWorkers"},
        runPolicy=Fields(backoffLimit=int, schedulingPolicy=Fields(minAvailable=int, queue=str)),
        replicaSpecs_=Fields(Scheduler=REPLICAS, Worker=REPLICAS),
    ),
)
SECRET = Fields(
    apiVersion_={"v1"},
    kind_={"Secret"},
    metadata_=Fields(name_=NAME, namespace=NAME),
    type={"Opaque"},
    stringData=Map(str),
)
EVENTS = {
    "*",
    "PodPending",
    "PodRunning",
    "PodFailed",
    "PodEvicted",
    "Unknown",
    "TaskCompleted",
    "OutOfSync",
    "CommandIssued",
    "JobUpdated",
    "TaskFailed",
}
ACTIONS = {"AbortJob", "RestartJob", "RestartTask", "TerminateJob", "CompleteJob", "ResumeJob"}
VOLCANO = Fields(
    apiVersion_={"batch.volcano.sh/v1alpha1"},
    kind_={"Job"},
    metadata_=METADATA,
    spec_=Fields(
        schedulerName=str,
        queue=NAME,
        minAvailable=int,
        maxRetry=int,
        plugins=Fields(env=list, svc=list),
        policies=[Fields(exitCode=int, event=EVENTS, action_=ACTIONS)],
        tasks_=[Fields(name_=NAME, replicas_=int, template_=TEMPLATE)],
    ),
)

PROBE = Fields(
    httpGet_=Fields(path_=re.compile("/.*"), port_={"http"}),
    periodSeconds=int,
    timeoutSeconds=int,
    failureThreshold=int,
)
CONTAINER_PORT = Fields(name=re.compile("[a-z0-9-]{1,15}"), containerPort_=int, protocol={"TCP"})
SERVER = Fields(
    name_=NAME,
    image_=str,
    imagePullPolicy={"Always", "IfNotPresent", "Never"},
    args=[str],
    env=[VARIABLE],
    workingDir=str,
    ports=[CONTAINER_PORT],
    resources=Fields(limits=QUANTITIES, requests=QUANTITIES),
    startupProbe=PROBE,
    livenessProbe=PROBE,
    readinessProbe=PROBE,
    lifecycle=Fields(preStop=Fields(exec=Fields(command=[str]))),
    securityContext=Fields(
        allowPrivilegeEscalation=bool, readOnlyRootFilesystem=bool, capabilities=Fields(drop=[{"ALL"}])
    ),
    volumeMounts=[Fields(name_=NAME, mountPath_=re.compile("/[^:]*"), readOnly=bool)],
)
SERVER_VOLUME = Fields(
    name_=NAME,
    emptyDir=dict,
    hostPath=Fields(path_=str, type={"Directory"}),
    secret=Fields(secretName_=NAME, defaultMode=int),
    persistentVolumeClaim=Fields(claimName_=NAME, readOnly=bool),
)
SERVER_POD = Fields(
    terminationGracePeriodSeconds=int,
    automountServiceAccountToken=bool,
    enableServiceLinks=bool,
    securityContext=Fields(
        runAsNonRoot=bool, runAsUser=int, runAsGroup=int, fsGroup=int, seccompProfile=Fields(type_={"RuntimeDefault"})
    ),
    containers_=[SERVER],
    volumes=[SERVER_VOLUME],
)
DEPLOYMENT = Fields(
    apiVersion_={"apps/v1"},
    kind_={"Deployment"},
    metadata_=METADATA,
    spec_=Fields(
        replicas=int,
        selector_=Fields(matchLabels=Map(str)),
        strategy=Fields(type={"RollingUpdate"}, rollingUpdate=Fields(maxUnavailable=int, maxSurge=int)),
        progressDeadlineSeconds=int,
        template_=Fields(metadata_=Fields(labels=Map(str)), spec_=SERVER_POD),
    ),
)
SERVICE = Fields(
    apiVersion_={"v1"},
    kind_={"Service"},
    metadata_=METADATA,
    spec_=Fields(
        type={"ClusterIP"},
        selector=Map(str),
        ports_=[Fields(name=NAME, port_=int, targetPort={"http"}, protocol={"TCP"})],
    ),
)


def expanded(word, variables):
    """A container's argument as the kubelet gives it to the process: $(NAME) replaced where NAME is set, $$ taken for
    $."""
    out, i = "", 0
    while i < len(word):
        if word[i] != "$" or i + 1 == len(word):
            out, i = out + word[i], i + 1
        elif word[i + 1] == "$":
            out, i = out + "$", i + 2
        elif word[i + 1] == "(" and (end := word.find(")", i)) > 0:
            out, i = out + variables.get(word[i + 2 : end], word[i : end + 1]), end + 1
        else:
            out, i = out + word[i : i + 2], i + 2
    return out


SBATCH = {
    "job-name",
    "nodes",
    "ntasks-per-node",
    "exclusive",
    "gres",
    "mem",
    "time",
    "output",
    "open-mode",
    "requeue",
    "signal",
    "partition",
    "account",
}


def sbatch_options(script):
    """{option: value} of the #SBATCH lines, which end at the first command; an unknown option is an error."""
    options = {}
    for line in script.splitlines():
        if line.startswith("#SBATCH "):
            (word,) = shlex.split(line.removeprefix("#SBATCH "))
            name, _, options[word[2:].partition("=")[0]] = word[2:].partition("=")
            assert name in SBATCH, name
        elif line and not line.startswith("#"):
            return options


def instructions(dockerfile):
    """[(instruction, rest)] of a Dockerfile, lines joined, comments dropped."""
    lines = [line for line in dockerfile.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return [tuple(line.split(None, 1)) for line in "\n".join(lines).replace("\\\n", " ").splitlines()]
