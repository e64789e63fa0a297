//! RBAC, disruption budgets, certificates, admission.

use serde_json::Value;

use super::format::{age_of, count, duration, int, int_or_string, list, or};
use super::{AGE, NAME, PLAIN, Printer, number, text, wide};
use crate::object::meta;

pub(super) fn printer(plural: &str) -> Option<&'static Printer> {
    Some(match plural {
        "roles" => &PLAIN,
        "clusterroles" => &PLAIN,
        "rolebindings" | "clusterrolebindings" => &BINDINGS,
        "poddisruptionbudgets" => &BUDGETS,
        "certificatesigningrequests" => &REQUESTS,
        "mutatingwebhookconfigurations" | "validatingwebhookconfigurations" => &WEBHOOKS,
        "validatingadmissionpolicies" => &POLICIES,
        "validatingadmissionpolicybindings" => &POLICY_BINDINGS,
        _ => return None,
    })
}

static BINDINGS: Printer = Printer {
    columns: &[NAME, text("Role"), AGE, wide("Users"), wide("Groups"), wide("ServiceAccounts")],
    cells: |o, now| {
        let of = |kind: &str| {
            let subjects = list(&o["subjects"]).iter().filter(|s| s["kind"] == kind);
            let show = |s: &Value| match or(&s["namespace"], "") {
                "" => or(&s["name"], "").to_owned(),
                namespace => format!("{namespace}/{}", or(&s["name"], "")),
            };
            Value::from(subjects.map(show).collect::<Vec<_>>().join(", "))
        };
        let role = format!("{}/{}", or(&o["roleRef"]["kind"], ""), or(&o["roleRef"]["name"], ""));
        vec![
            meta(o, "name").into(),
            role.into(),
            age_of(o, now),
            of("User"),
            of("Group"),
            of("ServiceAccount"),
        ]
    },
};

static BUDGETS: Printer = Printer {
    columns: &[NAME, text("Min Available"), text("Max Unavailable"), number("Allowed Disruptions"), AGE],
    cells: |o, now| {
        vec![
            meta(o, "name").into(),
            int_or_string(&o["spec"]["minAvailable"], "N/A"),
            int_or_string(&o["spec"]["maxUnavailable"], "N/A"),
            int(&o["status"]["disruptionsAllowed"]).into(),
            age_of(o, now),
        ]
    },
};

static REQUESTS: Printer = Printer {
    columns: &[
        NAME,
        AGE,
        text("SignerName"),
        text("Requestor"),
        text("RequestedDuration"),
        text("Condition"),
    ],
    cells: |o, now| {
        let spec = &o["spec"];
        let wanted = spec["expirationSeconds"].as_i64().map_or_else(|| "<none>".to_owned(), duration);
        vec![
            meta(o, "name").into(),
            age_of(o, now),
            or(&spec["signerName"], "<none>").into(),
            or(&spec["username"], "").into(),
            wanted.into(),
            request_condition(o).into(),
        ]
    },
};

fn request_condition(request: &Value) -> String {
    let has = |kind: &str| list(&request["status"]["conditions"]).iter().any(|c| c["type"] == kind);
    let mut words = vec![if has("Denied") {
        "Denied"
    } else if has("Approved") {
        "Approved"
    } else {
        "Pending"
    }];
    if has("Failed") {
        words.push("Failed");
    }
    if !or(&request["status"]["certificate"], "").is_empty() {
        words.push("Issued");
    }
    words.join(",")
}

static WEBHOOKS: Printer = Printer {
    columns: &[NAME, number("Webhooks"), AGE],
    cells: |o, now| vec![meta(o, "name").into(), count(&o["webhooks"]).into(), age_of(o, now)],
};

static POLICIES: Printer = Printer {
    columns: &[NAME, number("Validations"), text("ParamKind"), AGE],
    cells: |o, now| {
        let kind = &o["spec"]["paramKind"];
        let kind = if kind.is_null() {
            "<unset>".to_owned()
        } else {
            format!("{}/{}", or(&kind["apiVersion"], ""), or(&kind["kind"], ""))
        };
        vec![meta(o, "name").into(), count(&o["spec"]["validations"]).into(), kind.into(), age_of(o, now)]
    },
};

static POLICY_BINDINGS: Printer = Printer {
    columns: &[NAME, text("PolicyName"), text("ParamRef"), AGE],
    cells: |o, now| {
        let reference = &o["spec"]["paramRef"];
        let shown = match (or(&reference["namespace"], ""), or(&reference["name"], "")) {
            _ if reference.is_null() => "<unset>".to_owned(),
            (_, "") => "*".to_owned(),
            ("", name) => name.to_owned(),
            (namespace, name) => format!("{namespace}/{name}"),
        };
        vec![meta(o, "name").into(), or(&o["spec"]["policyName"], "").into(), shown.into(), age_of(o, now)]
    },
};
