//! The life of a Pod, step by step, with no clock and no socket.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;

use super::super::state::{Ended, Probed};
use super::*;
use serde_json::{Value, json};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1000 + seconds).unwrap()
}

fn pod_of(spec: Value) -> Pod {
    crate::pod::tests::pod(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec}))
}

fn ready() -> PodState {
    PodState { sandbox: Stage::Done, volumes: Stage::Done, start_time: Some(at(0)), ..PodState::default() }
}

fn with_image() -> ContainerState {
    ContainerState { image: ImageState::Ready(Arc::default()), ..ContainerState::default() }
}

fn running() -> ContainerState {
    let probed = Some(Probed { started: true, ready: true });
    let run = Run::Running { id: "id".into(), started_at: at(0) };
    ContainerState { run, probed, post_started: true, ..with_image() }
}

fn ended(code: i32, when: i64) -> ContainerState {
    let run = Run::Ended(Ended {
        id: "id".into(),
        code,
        signal: None,
        reason: String::new(),
        message: None,
        started_at: None,
        finished_at: at(when),
    });
    ContainerState { run, ..with_image() }
}

fn start(name: &str) -> Action {
    Action::Start(name.into())
}

#[test]
fn a_new_pod_prepares_everything_at_once() {
    let pod = pod_of(json!({"containers": [{"name": "a"}, {"name": "b"}]}));
    let actions = step(&pod, &PodState::default(), at(0)).actions;
    assert_eq!(
        actions,
        [Action::Sandbox, Action::Volumes, Action::Pull("a".into()), Action::Pull("b".into())]
    );
}

#[test]
fn main_containers_start_in_their_order_and_wait_for_post_start() {
    let pod = pod_of(json!({"containers": [{"name": "a"}, {"name": "b"}]}));
    let mut state = ready();
    state.containers.insert("a".into(), with_image());
    state.containers.insert("b".into(), with_image());
    assert_eq!(step(&pod, &state, at(0)).actions, [start("a")]);
    state.containers.insert("a".into(), ContainerState { post_started: false, ..running() });
    assert_eq!(step(&pod, &state, at(0)).actions, []);
    state.containers.insert("a".into(), running());
    assert_eq!(step(&pod, &state, at(0)).actions, [start("b")]);
    // A container that cannot start holds nobody back.
    state
        .containers
        .insert("a".into(), ContainerState { image: ImageState::Busy, ..ContainerState::default() });
    assert_eq!(step(&pod, &state, at(0)).actions, [start("b")]);
}

#[test]
fn nothing_starts_before_sandbox_and_volumes() {
    let pod = pod_of(json!({"containers": [{"name": "a"}]}));
    let mut state = ready();
    state.containers.insert("a".into(), with_image());
    state.volumes = Stage::Failed { until: at(5), times: 1 };
    let step = step(&pod, &state, at(0));
    assert_eq!((step.actions, step.wake), (vec![], Some(at(5))));
}

#[test]
fn init_containers_run_one_after_the_other_and_sidecars_stay() {
    let pod = pod_of(json!({
        "initContainers": [{"name": "i1"}, {"name": "s", "restartPolicy": "Always"}, {"name": "i2"}],
        "containers": [{"name": "a"}]}));
    let mut state = ready();
    for name in ["i1", "s", "i2", "a"] {
        state.containers.insert(name.into(), with_image());
    }
    let next = |state: &PodState| step(&pod, state, at(1));
    assert_eq!(next(&state).actions, [start("i1")]);
    state.containers.insert("i1".into(), running());
    assert_eq!(next(&state).actions, []);
    state.containers.insert("i1".into(), ended(0, 1));
    assert_eq!(next(&state).actions, [start("s")]);
    state.containers.insert("s".into(), ContainerState { probed: None, ..running() });
    assert_eq!(next(&state).actions, []);
    state.containers.insert("s".into(), running());
    assert_eq!(next(&state).actions, [start("i2")]);
    // A sidecar that dies while a later init container runs is started again.
    state.containers.insert("i2".into(), running());
    state.containers.insert("s".into(), ended(1, 1));
    assert_eq!(next(&state).actions, [start("s")]);
    state.containers.insert("s".into(), running());
    state.containers.insert("i2".into(), ended(0, 1));
    assert!(next(&state).initialized);
    assert_eq!(next(&state).actions, [start("a")]);
}

#[test]
fn a_failed_init_container_ends_a_pod_that_never_restarts() {
    let spec = |policy: &str| json!({"restartPolicy": policy, "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]});
    let mut state = ready();
    state.containers.insert("i".into(), ended(3, 0));
    let never = step(&pod_of(spec("Never")), &state, at(0)).actions;
    assert_eq!(never, [Action::Fail { reason: "".into(), message: "".into() }]);
    assert_eq!(step(&pod_of(spec("Always")), &state, at(0)).actions, [start("i")]);
}

#[test]
fn restart_policies() {
    for (policy, code, again) in [
        ("Always", 0, true),
        ("Always", 1, true),
        ("OnFailure", 0, false),
        ("OnFailure", 1, true),
        ("Never", 1, false),
    ] {
        let pod = pod_of(json!({"restartPolicy": policy, "containers": [{"name": "a"}]}));
        let mut state = ready();
        state.containers.insert("a".into(), ended(code, 0));
        let actions = step(&pod, &state, at(0)).actions;
        assert_eq!(actions, if again { vec![start("a")] } else { vec![Action::TearDown] }, "{policy} {code}");
    }
}

#[test]
fn crashes_back_off() {
    let pod = pod_of(json!({"containers": [{"name": "a"}]}));
    let mut state = ready();
    let mut crashed = ended(1, 0);
    crashed.backoff.next(at(0), at(0));
    state.containers.insert("a".into(), crashed);
    let waiting = step(&pod, &state, at(3));
    assert_eq!(waiting.actions, [Action::BackOff { name: "a".into(), image: false, until: at(10) }]);
    assert_eq!(waiting.wake, Some(at(10)));
    assert_eq!(step(&pod, &state, at(10)).actions, [start("a")]);
}

#[test]
fn pulls_back_off() {
    let pod = pod_of(json!({"containers": [{"name": "a"}]}));
    let mut state = ready();
    let mut failed = ContainerState { image: ImageState::Failed { at: at(0) }, ..ContainerState::default() };
    failed.image_backoff.next(at(0), at(0));
    state.containers.insert("a".into(), failed);
    let waiting = step(&pod, &state, at(1));
    assert_eq!(waiting.actions, [Action::BackOff { name: "a".into(), image: true, until: at(10) }]);
    assert_eq!(step(&pod, &state, at(10)).actions, [Action::Pull("a".into())]);
}

#[test]
fn deletion_kills_main_containers_then_sidecars_in_reverse_then_takes_all_down() {
    let pod = pod_of(json!({"initContainers": [
        {"name": "s1", "restartPolicy": "Always"}, {"name": "s2", "restartPolicy": "Always"}],
        "containers": [{"name": "a"}, {"name": "b"}]}));
    let mut state = ready();
    for name in ["s1", "s2", "a", "b"] {
        state.containers.insert(name.into(), running());
    }
    state.stop = Some(Stop::Deleted);
    state.deadline = Some(at(30));
    let kill = |name: &str, grace| Action::Kill { name: name.into(), grace };
    assert_eq!(step(&pod, &state, at(0)).actions, [kill("a", 30), kill("b", 30)]);
    state.containers.get_mut("a").unwrap().killing = true;
    state.containers.insert("b".into(), ended(0, 1));
    assert_eq!(step(&pod, &state, at(1)).actions, []);
    state.containers.insert("a".into(), ended(0, 2));
    assert_eq!(step(&pod, &state, at(2)).actions, [kill("s2", 28)]);
    state.containers.insert("s2".into(), ended(0, 3));
    assert_eq!(step(&pod, &state, at(40)).actions, [kill("s1", 0)]);
    state.containers.insert("s1".into(), ended(0, 41));
    assert_eq!(step(&pod, &state, at(41)).actions, [Action::TearDown]);
    state.torn_down = Stage::Done;
    assert_eq!(step(&pod, &state, at(41)).actions, [Action::DeleteFromApi]);
    state.gone = true;
    assert_eq!(step(&pod, &state, at(41)).actions, [Action::Clean]);
    state.cleaned = Stage::Done;
    assert!(step(&pod, &state, at(41)).finished);
}

#[test]
fn a_pod_deleted_while_it_is_being_made_waits_for_the_making() {
    let pod = pod_of(json!({"containers": [{"name": "a"}]}));
    let state = PodState { sandbox: Stage::Busy, stop: Some(Stop::Deleted), ..PodState::default() };
    assert_eq!(step(&pod, &state, at(0)), Step { initialized: true, ..Step::default() });
    let mut state = ready();
    state.containers.insert("a".into(), ContainerState { run: Run::Starting, ..with_image() });
    state.stop = Some(Stop::Deleted);
    assert_eq!(step(&pod, &state, at(0)).actions, []);
}

#[test]
fn deadlines_fail_the_pod() {
    let pod = pod_of(json!({"activeDeadlineSeconds": 5, "containers": [{"name": "a"}]}));
    let mut state = ready();
    state.containers.insert("a".into(), running());
    assert_eq!(step(&pod, &state, at(4)), Step { wake: Some(at(5)), initialized: true, ..Step::default() });
    assert!(
        matches!(&step(&pod, &state, at(5)).actions[..], [Action::Fail { reason, .. }] if reason == "DeadlineExceeded")
    );
}

#[test]
fn finished_work_ends_sidecars_and_keeps_the_object() {
    let pod = pod_of(
        json!({"restartPolicy": "Never", "initContainers": [{"name": "s", "restartPolicy": "Always"}],
        "containers": [{"name": "a"}], "terminationGracePeriodSeconds": 7}),
    );
    let mut state = ready();
    state.initialized = true;
    state.containers.insert("s".into(), running());
    state.containers.insert("a".into(), ended(0, 1));
    assert_eq!(step(&pod, &state, at(1)).actions, [Action::Kill { name: "s".into(), grace: 7 }]);
    state.containers.insert("s".into(), ended(143, 2));
    assert_eq!(step(&pod, &state, at(2)).actions, [Action::TearDown]);
    state.torn_down = Stage::Done;
    assert_eq!(step(&pod, &state, at(2)), Step { initialized: true, ..Step::default() });
}

#[test]
fn ephemeral_containers_run_once() {
    let pod = pod_of(json!({"containers": [{"name": "a"}], "ephemeralContainers": [{"name": "e"}]}));
    let mut state = ready();
    state.containers.insert("a".into(), running());
    state.containers.insert("e".into(), with_image());
    assert_eq!(step(&pod, &state, at(0)).actions, [start("e")]);
    state.containers.insert("e".into(), ended(1, 0));
    assert_eq!(step(&pod, &state, at(0)).actions, []);
}
