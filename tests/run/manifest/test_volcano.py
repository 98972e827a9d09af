"""AscendJob and Volcano Job: what the cluster accepts, and what their containers do."""

import signal

import pytest
import yaml

from pangu_run.manifest.plan import Plan
from pangu_run.manifest.text import pod_argument
from tests.run.manifest.schemas import ASCENDJOB, VOLCANO, expanded, faults
from tests.run.manifest.tools import LAUNCH, MOUNT, NASTY, WORDS, calls, execute, signals, written


def load(capsys, kind, *words):
    *_, job = yaml.safe_load_all(written(capsys, "volcano", *WORDS, *MOUNT, "--image", "i:1", "--kind", kind, *words))
    pods = [spec["template"]["spec"] for spec in job["spec"].get("replicaSpecs", {}).values()] or [
        task["template"]["spec"] for task in job["spec"]["tasks"]
    ]
    return job, pods


@pytest.mark.parametrize("kind,shape", [("ascendjob", ASCENDJOB), ("volcano", VOLCANO)])
@pytest.mark.parametrize("hosts", [1, 2, 64])
def test_the_job_is_what_the_cluster_accepts(capsys, plan, kind, shape, hosts):
    plan.value = Plan(hosts, 4, on_ascend=True)
    extra = [
        "--host-network",
        "--memory",
        "512Gi",
        "--cpu",
        "160",
        "--node-selector",
        "a/b=c",
        "--env",
        "N=1",
        "--env",
        "M=yes",
        "--queue",
        "1",
    ]
    for words in ([], extra):
        job, pods = load(capsys, kind, *words)
        assert faults(job, shape) == []
    groups = job["spec"].get("replicaSpecs") or {task["name"]: task for task in job["spec"]["tasks"]}
    assert sum(group["replicas"] for group in groups.values()) == hosts
    assert (job["spec"].get("runPolicy", {}).get("schedulingPolicy") or job["spec"])["minAvailable"] == hosts
    for pod in pods:
        (container,) = pod["containers"]
        assert (
            container["resources"]["limits"]
            == container["resources"]["requests"]
            == {
                "huawei.com/Ascend910": 4,
                "memory": "512Gi",
                "cpu": "160",
            }
        )
        assert pod["terminationGracePeriodSeconds"] == 300 and pod["hostNetwork"]
        (term,) = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert term["labelSelector"]["matchExpressions"][0]["values"] == [job["metadata"]["name"]]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_ascendjob_has_one_scheduler_with_devices_and_the_operators_rank_table(capsys):
    job, pods = load(capsys, "ascendjob", "--namespace", "team")
    assert (
        job["metadata"]["labels"]["framework"] == "mindspore"
        and job["metadata"]["labels"]["ring-controller.atlas"] == "ascend-910b"
    )
    assert job["spec"]["replicaSpecs"]["Scheduler"]["replicas"] == 1 and pods[0] == pods[1]
    volumes = {volume["name"]: volume for volume in pods[0]["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in pods[0]["containers"][0]["volumeMounts"]}
    assert volumes["ranktable"]["hostPath"]["path"] == "/user/mindx-dl/ranktable/team.pangu-alpha-13b"
    assert mounts["ranktable"] == "/user/serverid/devindex/config"
    assert volumes["mount-0"]["hostPath"]["path"] == "/shared" and mounts["mount-0"] == "/out"


def action(policies, code, event):
    """Volcano's choice: the first policy with that event or exit code. Source: its job controller, applyPolicies."""
    return next(
        policy["action"] for policy in policies if policy.get("event") == event or policy.get("exitCode") == code
    )


def test_volcano_restarts_what_can_go_on_and_ends_what_cannot(capsys):
    policies = load(capsys, "volcano", "--max-requeues", "7")[0]["spec"]["policies"]
    results = {code: action(policies, code, "PodFailed") for code in (1, 2, 69, 75, 137)}
    assert results == {1: "TerminateJob", 2: "TerminateJob", 69: "RestartJob", 75: "RestartJob", 137: "TerminateJob"}
    assert action(policies, 0, "PodEvicted") == "RestartJob" and action(policies, 0, "TaskCompleted") == "CompleteJob"


def command_of(pod, **variables):
    (container,) = pod["containers"]
    return [
        expanded(word, {"PATH": "/wrong", "HOME": "/wrong"} | variables)
        for word in container["command"] + container["args"]
    ]


def test_ascendjob_waits_for_the_rank_table_and_starts_the_launcher(capsys, tools):
    table = "/user/serverid/devindex/config/hccl.json"
    command = command_of(load(capsys, "ascendjob", "--table-timeout", "60")[1][1])
    process, heard = execute(tools, command, MS_ROLE="MS_WORKER")
    assert calls(heard) == [["ranktable", "wait", table, "--timeout", "60"], ["launch", "--rank-table", table, *LAUNCH]]
    assert process.returncode == 0 and heard[1]["role"] is None
    process, heard = execute(tools, command, TABLE_CODE="2")
    assert process.returncode == 2 and len(calls(heard)) == 1


@pytest.mark.parametrize("code,told", [(0, 0), (1, 1), (2, 2), (69, 138), (75, 138), (137, 1), (143, 1)])
def test_ascendjob_tells_the_operator_to_restart_by_138_alone(capsys, tools, code, told):
    """Kubeflow's rule for restartPolicy ExitCode: 130, 137, 138 and 143 are tried again, others are final."""
    job, pods = load(capsys, "ascendjob")
    assert {spec["restartPolicy"] for spec in job["spec"]["replicaSpecs"].values()} == {"ExitCode"}
    assert execute(tools, command_of(pods[0]), CODE=str(code))[0].returncode == told


def test_ascendjob_passes_sigterm_on_and_waits_for_the_checkpoint(capsys, tools):
    process, heard = execute(tools, command_of(load(capsys, "ascendjob")[1][0]), stop=signal.SIGTERM, WAIT="1")
    assert signals(heard) == ["SIGTERM"] and process.returncode == 138


def test_volcano_pod_says_which_host_it_is_and_is_replaced_by_the_launcher(capsys, tools):
    command = command_of(load(capsys, "volcano")[1][0])
    hosts = {"VC_WORKER_HOSTS": "j-worker-0.j,j-worker-1.j", "VC_TASK_INDEX": "1"}
    process, heard = execute(tools, command, CODE="75", **hosts)
    assert (
        calls(heard) == [["launch", "--hosts", hosts["VC_WORKER_HOSTS"], "--server-id", "j-worker-1.j", *LAUNCH]]
        and process.returncode == 75
    )
    process, heard = execute(tools, command, stop=signal.SIGTERM, WAIT="1", **hosts)
    assert signals(heard) == ["SIGTERM"] and process.returncode == 75


@pytest.mark.parametrize("text", ["$(PATH)", "$$(PATH)", "$$$(PATH)", "$$", "$x$$$", "$(", "a$(NO)b", NASTY])
def test_kubernetes_leaves_arguments_as_they_were(text):
    assert expanded(pod_argument(text), {"PATH": "/wrong"}) == text


def test_a_config_file_is_named_as_the_pod_sees_it(capsys, tmp_path):
    config = tmp_path / "sub" / "my run.yaml"
    config.parent.mkdir()
    config.write_text("base: alpha/tiny\n")
    words = ["--config", str(config), "--output-dir", "/out/x", "--image", "i:1", "--mount", f"{tmp_path}:/out"]
    *_, job = yaml.safe_load_all(written(capsys, "volcano", *words))
    args = job["spec"]["replicaSpecs"]["Scheduler"]["template"]["spec"]["containers"][0]["args"]
    assert args[args.index("--config") + 1] == "/out/sub/my run.yaml" and job["metadata"]["name"] == "pangu-my-run"


def test_the_schemas_refuse_what_the_cluster_would():
    wrong = {
        "apiVersion": "mindxdl.gitee.com/v1",
        "kind": "AscendJob",
        "metadata": {"name": "9a"},
        "spec": {"replicaSpec": {}, "successPolicy": True},
    }
    places = {fault.split(":")[0] for fault in faults(wrong, ASCENDJOB)}
    assert places == {"$.metadata.name", "$.spec.replicaSpecs", "$.spec.replicaSpec", "$.spec.successPolicy"}
