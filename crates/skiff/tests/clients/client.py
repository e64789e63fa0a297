"""The scenario of the Python client: CRUD, watch, apply, exec, logs, port-forward. Its one argument is a Pod that runs."""

import sys
import threading

from kubernetes import client, config, watch
from kubernetes.client.rest import ApiException
from kubernetes.stream import portforward, stream

NAMESPACE = "default"


def crud(core):
    body = client.V1ConfigMap(metadata=client.V1ObjectMeta(name="python"), data={"k": "1"})
    made = core.create_namespaced_config_map(NAMESPACE, body)
    assert made.metadata.uid, made
    assert core.read_namespaced_config_map("python", NAMESPACE).data == {"k": "1"}
    made.data = {"k": "2"}
    assert core.replace_namespaced_config_map("python", NAMESPACE, made).data == {"k": "2"}
    patched = core.patch_namespaced_config_map("python", NAMESPACE, {"data": {"l": "3"}})
    assert patched.data == {"k": "2", "l": "3"}, patched.data
    names = [m.metadata.name for m in core.list_namespaced_config_map(NAMESPACE).items]
    assert "python" in names, names
    core.delete_namespaced_config_map("python", NAMESPACE)
    try:
        core.read_namespaced_config_map("python", NAMESPACE)
    except ApiException as missing:
        assert missing.status == 404, missing
    else:
        raise AssertionError("the ConfigMap is still there")


def watched(core):
    version = core.list_namespaced_config_map(NAMESPACE).metadata.resource_version
    body = client.V1ConfigMap(metadata=client.V1ObjectMeta(name="python-watched"))
    threading.Timer(0.2, core.create_namespaced_config_map, (NAMESPACE, body)).start()
    seen = watch.Watch()
    for event in seen.stream(
        core.list_namespaced_config_map, NAMESPACE, resource_version=version, timeout_seconds=60
    ):
        if event["object"].metadata.name != "python-watched":
            continue
        if event["type"] == "ADDED":
            core.delete_namespaced_config_map("python-watched", NAMESPACE)
        if event["type"] == "DELETED":
            seen.stop()
            return
    raise AssertionError("the watch ended without the event")


def applied(core):
    def apply(manager, value, force=False):
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "python-applied"}, "data": {"k": value}}
        core.patch_namespaced_config_map(
            "python-applied", NAMESPACE, body, field_manager=manager, force=force,
            _content_type="application/apply-patch+yaml",
        )

    apply("one", "1")
    try:
        apply("two", "2")
    except ApiException as conflict:
        assert conflict.status == 409 and "one" in str(conflict.body), conflict
    else:
        raise AssertionError("no conflict")
    apply("two", "2", force=True)
    assert core.read_namespaced_config_map("python-applied", NAMESPACE).data == {"k": "2"}
    core.delete_namespaced_config_map("python-applied", NAMESPACE)


def executed(core, pod):
    command = ["sh", "-c", "read line; echo got $line; echo wrong >&2; exit 3"]
    run = stream(
        core.connect_get_namespaced_pod_exec, pod, NAMESPACE, command=command,
        stdin=True, stdout=True, stderr=True, tty=False, _preload_content=False,
    )
    run.write_stdin("word\n")
    run.run_forever(timeout=60)
    assert run.read_stdout() == "got word\n", "stdout"
    assert run.read_stderr() == "wrong\n", "stderr"
    assert run.returncode == 3, run.returncode


def logged(core, pod):
    text = core.read_namespaced_pod_log(pod, NAMESPACE, tail_lines=1)
    assert text == "ready\n", text
    follow = watch.Watch()
    for line in follow.stream(core.read_namespaced_pod_log, pod, NAMESPACE):
        assert line == "ready", line
        break


def forwarded(core, pod):
    forward = portforward(core.connect_get_namespaced_pod_portforward, pod, NAMESPACE, ports="8080")
    socket = forward.socket(8080)
    socket.sendall(b"GET / HTTP/1.0\r\n\r\n")
    answer = b""
    while True:
        some = socket.recv(4096)
        if not some:
            break
        answer += some
    assert answer.endswith(b"hello\n"), answer
    assert forward.error(8080) is None, forward.error(8080)


def main():
    config.load_kube_config()
    core = client.CoreV1Api()
    pod = sys.argv[1]
    for step in (
        lambda: crud(core),
        lambda: watched(core),
        lambda: applied(core),
        lambda: executed(core, pod),
        lambda: logged(core, pod),
        lambda: forwarded(core, pod),
    ):
        step()
    print("python: all passed")


main()
