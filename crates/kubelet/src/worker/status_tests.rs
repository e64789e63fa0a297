//! Statuses as text: what the worker knows in, what `kubectl get pod -o yaml` would show out.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::super::state::{Probed, Waiting};
use super::*;
use serde_json::{Value, json};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

fn pod_of(spec: Value) -> Pod {
    crate::pod::tests::pod(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec}))
}

fn running(ready: bool) -> ContainerState {
    ContainerState {
        run: Run::Running { id: "r1".into(), started_at: at(5) },
        probed: Some(Probed { started: true, ready }),
        post_started: true,
        image_names: Some(("docker.io/library/nginx:latest".into(), "sha256:1".into())),
        ..ContainerState::default()
    }
}

fn end(code: i32) -> Ended {
    Ended {
        id: "r0".into(),
        code,
        signal: None,
        reason: if code == 0 { "Completed" } else { "Error" }.into(),
        message: None,
        started_at: Some(at(1)),
        finished_at: at(2),
    }
}

fn ended(code: i32) -> ContainerState {
    ContainerState { run: Run::Ended(end(code)), ..ContainerState::default() }
}

fn state(containers: &[(&str, ContainerState)]) -> PodState {
    PodState {
        start_time: Some(at(0)),
        sandbox: Stage::Done,
        ips: vec!["10.244.0.5".parse().unwrap()],
        initialized: true,
        containers: containers.iter().map(|(n, c)| (n.to_string(), c.clone())).collect(),
        ..PodState::default()
    }
}

fn show(spec: Value, state: &PodState) -> Value {
    let host = ["192.168.49.2".parse().unwrap()];
    serde_json::to_value(status(&pod_of(spec), state, &host, &PodStatus::default(), at(9))).unwrap()
}

fn conditions_text(status: &Value) -> Vec<String> {
    let text = |c: &Value| {
        let tail = c["reason"].as_str().map(|r| format!(" {r}")).unwrap_or_default();
        format!("{}={}{tail}", c["type"].as_str().unwrap(), c["status"].as_str().unwrap())
    };
    status["conditions"].as_array().unwrap().iter().map(text).collect()
}

#[test]
fn a_running_pod() {
    let status =
        show(json!({"containers": [{"name": "a", "image": "nginx"}]}), &state(&[("a", running(true))]));
    assert_eq!(status["phase"], "Running");
    assert_eq!(status["podIP"], "10.244.0.5");
    assert_eq!(status["podIPs"], json!([{"ip": "10.244.0.5"}]));
    assert_eq!(status["hostIPs"], json!([{"ip": "192.168.49.2"}]));
    assert_eq!(status["startTime"], "1970-01-01T00:00:00Z");
    assert_eq!(status["qosClass"], "BestEffort");
    assert_eq!(
        status["containerStatuses"][0],
        json!({"containerID": "skiff://r1", "image": "docker.io/library/nginx:latest", "imageID": "sha256:1",
            "name": "a", "ready": true, "restartCount": 0, "started": true,
            "state": {"running": {"startedAt": "1970-01-01T00:00:05Z"}}})
    );
    assert_eq!(
        conditions_text(&status),
        [
            "PodReadyToStartContainers=True",
            "Initialized=True",
            "Ready=True",
            "ContainersReady=True",
            "PodScheduled=True"
        ]
    );
}

#[test]
fn waiting_reasons() {
    let mut crash = ended(1);
    crash.waiting = Some(Waiting { reason: "CrashLoopBackOff".into(), message: "back-off".into() });
    crash.restarts = 2;
    let status = show(json!({"containers": [{"name": "a"}]}), &state(&[("a", crash.clone())]));
    let shown = &status["containerStatuses"][0];
    assert_eq!(shown["state"]["waiting"]["reason"], "CrashLoopBackOff");
    assert_eq!(shown["lastState"]["terminated"]["exitCode"], 1);
    assert_eq!((&shown["restartCount"], &status["phase"]), (&json!(2), &json!("Running")));
    let fresh = show(json!({"containers": [{"name": "a"}]}), &state(&[]));
    assert_eq!(fresh["containerStatuses"][0]["state"]["waiting"]["reason"], "ContainerCreating");
    let mut early = state(&[]);
    early.initialized = false;
    let early = show(json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a"}]}), &early);
    assert_eq!(early["containerStatuses"][0]["state"]["waiting"]["reason"], "PodInitializing");
    assert_eq!(early["phase"], "Pending");
    assert_eq!(conditions_text(&early)[1], "Initialized=False ContainersNotInitialized");
    // While the Pod is being stopped nothing waits for a restart any more.
    let mut stopping = state(&[("a", crash)]);
    stopping.stop = Some(Stop::Deleted);
    let stopping = show(json!({"containers": [{"name": "a"}]}), &stopping);
    assert_eq!(stopping["containerStatuses"][0]["state"]["terminated"]["exitCode"], 1);
    assert_eq!(stopping["phase"], "Failed");
}

#[test]
fn phases() {
    let phase_of = |policy: &str, containers: &[(&str, ContainerState)]| {
        let pod = pod_of(json!({"restartPolicy": policy, "containers": [{"name": "a"}, {"name": "b"}]}));
        phase(&pod, &state(containers))
    };
    for (policy, a, b, expected) in [
        ("Always", running(true), ContainerState::default(), "Pending"),
        ("Always", running(true), running(true), "Running"),
        ("Always", running(true), ended(1), "Running"),
        ("Always", ended(0), ended(0), "Running"),
        ("OnFailure", ended(0), ended(1), "Running"),
        ("OnFailure", ended(0), ended(0), "Succeeded"),
        ("Never", ended(0), ended(0), "Succeeded"),
        ("Never", ended(0), ended(1), "Failed"),
        ("Never", ended(1), running(true), "Running"),
    ] {
        assert_eq!(phase_of(policy, &[("a", a), ("b", b)]), expected, "{policy}");
    }
}

#[test]
fn readiness_and_gates() {
    let status = show(
        json!({"containers": [{"name": "a"}, {"name": "b"}]}),
        &state(&[("a", running(false)), ("b", running(true))]),
    );
    assert_eq!(
        conditions_text(&status)[2..4],
        ["Ready=False ContainersNotReady", "ContainersReady=False ContainersNotReady"]
    );
    assert_eq!(status["conditions"][2]["message"], "containers with unready status: [a]");
    let pod = pod_of(json!({"containers": [{"name": "a"}], "readinessGates": [{"conditionType": "x/y"}]}));
    let ready = |known: Value| {
        let known = serde_json::from_value(known).unwrap();
        let status = super::status(&pod, &state(&[("a", running(true))]), &[], &known, at(9));
        let find =
            |kind: &str| status.conditions.iter().flatten().find(|c| c.type_ == kind).cloned().unwrap();
        (
            find("Ready").status,
            find("Ready").message.unwrap_or_default(),
            status.conditions.clone().unwrap().len(),
        )
    };
    assert_eq!(
        ready(json!({})),
        ("False".into(), "corresponding condition of pod readiness gate \"x/y\" does not exist.".into(), 5)
    );
    let gate = json!({"conditions": [{"type": "x/y", "status": "True"}]});
    assert_eq!(ready(gate), ("True".into(), String::new(), 6));
}

#[test]
fn transition_times_change_only_with_the_status() {
    let pod = pod_of(json!({"containers": [{"name": "a"}]}));
    let first = status(&pod, &state(&[("a", running(false))]), &[], &PodStatus::default(), at(10));
    let second = status(&pod, &state(&[("a", running(true))]), &[], &first, at(20));
    let time = |s: &PodStatus, kind: &str| {
        s.conditions
            .iter()
            .flatten()
            .find(|c| c.type_ == kind)
            .unwrap()
            .last_transition_time
            .clone()
            .unwrap()
            .0
    };
    assert_eq!(time(&second, "Ready"), at(20));
    assert_eq!(time(&second, "Initialized"), at(10));
    let third = status(&pod, &state(&[("a", running(true))]), &[], &second, at(30));
    assert_eq!(second, third);
}
