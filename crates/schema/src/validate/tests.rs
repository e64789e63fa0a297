#![allow(clippy::unwrap_used, clippy::expect_used)]
use super::*;
use crate::{Table, json};
use serde_json::json;

fn check(kind: (&str, &str), text: &str, mode: Mode) -> (Value, Vec<String>) {
    let ty = Table::builtin().kind(kind.0, "v1", kind.1).unwrap();
    let mut parsed = json::parse(text.as_bytes()).unwrap();
    let errors = fields(ty, &mut parsed.value, &parsed.duplicates, mode);
    (parsed.value, errors.iter().map(ToString::to_string).collect())
}

const BOTH: &str = r#"{"apiVersion":"apps/v1","kind":"Deployment","extra":1,"metadata":{"name":"x","labels":{"a":"1","a":"2"}},
    "spec":{"foo":{"bar":1,"bar":2},"replicas":1,"replicas":2,
    "template":{"spec":{"containers":[{"name":"c","nope":1,"ports":[{"containerPort":80,"hostport":1}]}]}}}}"#;

#[test]
fn unknown_and_duplicate_fields_in_the_order_of_the_text() {
    let expected = [
        "unknown field \"extra\"",
        "duplicate field \"metadata.labels.a\"",
        "unknown field \"spec.foo\"",
        "duplicate field \"spec.replicas\"",
        "unknown field \"spec.template.spec.containers[0].nope\"",
        "unknown field \"spec.template.spec.containers[0].ports[0].hostport\"",
    ];
    let (kept, errors) = check(("apps", "Deployment"), BOTH, Mode::Strict);
    assert_eq!(errors, expected);
    assert_eq!(kept["extra"], 1, "strict validation refuses, it does not prune");
    let (pruned, warnings) = check(("apps", "Deployment"), BOTH, Mode::Warn);
    assert_eq!(warnings, expected);
    assert_eq!(
        pruned,
        json!({"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"x","labels":{"a":"2"}},
            "spec":{"replicas":2,"template":{"spec":{"containers":[{"name":"c","ports":[{"containerPort":80}]}]}}}})
    );
    let (silent, none) = check(("apps", "Deployment"), BOTH, Mode::Ignore);
    assert_eq!((silent, none), (pruned, vec![]));
}

#[test]
fn one_message_for_all() {
    let errors = [FieldError::Unknown("spec.foo".into()), FieldError::Duplicate("spec.x".into())];
    let message = refusal(&errors, Mode::Strict).unwrap();
    assert_eq!(message, "strict decoding error: unknown field \"spec.foo\", duplicate field \"spec.x\"");
    assert_eq!(refusal(&errors, Mode::Warn), None);
    assert!(refusal(&[FieldError::Type("json: x".into())], Mode::Ignore).is_some());
}

#[test]
fn wrong_types_are_told_as_go_tells_them() {
    let field = "into Go struct field";
    for (group, kind, text, expected) in [
        (
            "apps",
            "Deployment",
            r#"{"spec":{"replicas":"three"}}"#,
            format!("json: cannot unmarshal string {field} DeploymentSpec.spec.replicas of type int32"),
        ),
        (
            "apps",
            "Deployment",
            r#"{"spec":{"replicas":1.5}}"#,
            format!("json: cannot unmarshal number 1.5 {field} DeploymentSpec.spec.replicas of type int32"),
        ),
        (
            "apps",
            "Deployment",
            r#"{"spec":{"replicas":3000000000}}"#,
            format!(
                "json: cannot unmarshal number 3000000000 {field} DeploymentSpec.spec.replicas of type int32"
            ),
        ),
        (
            "",
            "Service",
            r#"{"spec":{"type":1}}"#,
            format!("json: cannot unmarshal number {field} ServiceSpec.spec.type of type v1.ServiceType"),
        ),
        (
            "",
            "Pod",
            r#"{"spec":"x"}"#,
            format!("json: cannot unmarshal string {field} Pod.spec of type v1.PodSpec"),
        ),
        (
            "",
            "Pod",
            r#"{"spec":{"containers":{}}}"#,
            format!("json: cannot unmarshal object {field} PodSpec.spec.containers of type []v1.Container"),
        ),
        (
            "",
            "Pod",
            r#"{"spec":{"containers":["a"]}}"#,
            format!("json: cannot unmarshal string {field} PodSpec.spec.containers of type v1.Container"),
        ),
        (
            "",
            "Pod",
            r#"{"spec":{"containers":[{"ports":[{"containerPort":"http"}]}]}}"#,
            format!(
                "json: cannot unmarshal string {field} ContainerPort.spec.containers.ports.containerPort of type int32"
            ),
        ),
        (
            "",
            "Pod",
            r#"{"metadata":{"labels":{"a":1}}}"#,
            format!("json: cannot unmarshal number {field} ObjectMeta.metadata.labels of type string"),
        ),
        (
            "",
            "Pod",
            r#"{"metadata":{"labels":[]}}"#,
            format!(
                "json: cannot unmarshal array {field} ObjectMeta.metadata.labels of type map[string]string"
            ),
        ),
        (
            "",
            "PersistentVolumeClaim",
            r#"{"spec":{"accessModes":[1]}}"#,
            format!(
                "json: cannot unmarshal number {field} PersistentVolumeClaimSpec.spec.accessModes of type v1.PersistentVolumeAccessMode"
            ),
        ),
        (
            "",
            "Service",
            r#"{"spec":{"ports":[{"targetPort":true}]}}"#,
            "json: cannot unmarshal bool into Go value of type int32".to_owned(),
        ),
        ("", "Secret", r#"{"data":{"a":"!!!"}}"#, "illegal base64 data at input byte 0".to_owned()),
        (
            "",
            "Pod",
            r#"{"metadata":{"creationTimestamp":"noon"}}"#,
            "parsing time \"noon\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"noon\" as \"2006\""
                .to_owned(),
        ),
        ("", "Pod", "[]", "json: cannot unmarshal array into Go value of type v1.Pod".to_owned()),
    ] {
        for mode in [Mode::Ignore, Mode::Warn, Mode::Strict] {
            assert_eq!(check((group, kind), text, mode).1, [expected.as_str()], "{text}");
        }
    }
}

#[test]
fn documents_become_what_go_would_write() {
    let (value, errors) = check(
        ("", "Pod"),
        r#"{"metadata":{"creationTimestamp":null,"annotations":{"a":null}},"spec":{"nodeName":null,
            "containers":[{"name":"c","resources":{"limits":{"cpu":0.5,"memory":"1024Mi"}}}]},
            "status":{"startTime":"2024-01-02T05:04:05.123+02:00"}}"#,
        Mode::Strict,
    );
    assert_eq!(errors, [""; 0]);
    assert_eq!(
        value,
        json!({"metadata":{"annotations":{"a":""}},"spec":{
            "containers":[{"name":"c","resources":{"limits":{"cpu":"500m","memory":"1Gi"}}}]},
            "status":{"startTime":"2024-01-02T03:04:05Z"}})
    );
}

#[test]
fn raw_objects_are_left_alone() {
    let text = r#"{"data":{"a":1,"a":null,"b":{}},"revision":1}"#;
    let (value, errors) = check(("apps", "ControllerRevision"), text, Mode::Strict);
    assert_eq!((value, errors), (json!({"data":{"a":null,"b":{}},"revision":1}), vec![]));
}
