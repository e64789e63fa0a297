//! Jobs and CronJobs.

use serde_json::{Value, json};

use super::pod::defaults;
use super::rules::Rules;
use super::selector;
use super::value::{child, child_or_new, default, flag, int, keep, same, set, text, unset};
use super::workload::template;
use crate::field::{FieldError, FieldErrors};
use crate::strategy::Context;

fn job_spec_defaults(spec: &mut Value) {
    if spec["completions"].is_null() && spec["parallelism"].is_null() {
        default(spec, "completions", 1);
    }
    default(spec, "parallelism", 1);
    let limit = if spec["backoffLimitPerIndex"].is_null() { 6 } else { i32::MAX };
    default(spec, "backoffLimit", limit);
    default(spec, "completionMode", "NonIndexed");
    default(spec, "suspend", false);
    let replacement = if spec["podFailurePolicy"].is_null() { "TerminatingOrFailed" } else { "Failed" };
    default(spec, "podReplacementPolicy", replacement);
}

/// Selector and labels by the Job's own uid, unless the author manages the selector.
fn generate_selector(_cx: &Context, job: &mut Value) {
    if flag(&job["spec"], "manualSelector") {
        return;
    }
    let uid = text(&job["metadata"], "uid").to_owned();
    let name = super::value::name(job).to_owned();
    let Some(spec) = child(job, "spec") else { return };
    if let Some(template) = child_or_new(spec, "template")
        && let Some(metadata) = child_or_new(template, "metadata")
        && let Some(labels) = child_or_new(metadata, "labels")
    {
        for (key, value) in [("controller-uid", &uid), ("job-name", &name)] {
            set(labels, key, value.as_str());
            set(labels, &format!("batch.kubernetes.io/{key}"), value.as_str());
        }
    }
    if let Some(selector) = child_or_new(spec, "selector")
        && let Some(labels) = child_or_new(selector, "matchLabels")
    {
        set(labels, "batch.kubernetes.io/controller-uid", uid);
    }
}

fn job_spec(spec: &Value, path: &str, errors: &mut FieldErrors) {
    for key in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
        "ttlSecondsAfterFinished",
    ] {
        errors.not_negative(spec, path, key);
    }
    errors.optional_one_of(spec, path, "completionMode", &["Indexed", "NonIndexed"]);
    if text(spec, "completionMode") == "Indexed" && spec["completions"].is_null() {
        let why = "when completion mode is Indexed";
        errors.push(FieldError::required(format!("{path}.completions"), why));
    }
    template(&spec["template"], &format!("{path}.template"), errors);
    let policy = text(&spec["template"]["spec"], "restartPolicy");
    if !matches!(policy, "OnFailure" | "Never") {
        errors.push(FieldError::required(
            format!("{path}.template.spec.restartPolicy"),
            "valid values: \"OnFailure\", \"Never\"",
        ));
    }
}

/// Jobs.
pub const JOB: Rules = Rules {
    default: |object| {
        let labels = defaults::template_labels(&object["spec"]["template"]).cloned();
        if let Some(labels) = labels
            && let Some(metadata) = child(object, "metadata")
            && unset(&metadata["labels"])
        {
            set(metadata, "labels", labels);
        }
        let Some(spec) = child(object, "spec") else { return };
        job_spec_defaults(spec);
        if let Some(template) = child(spec, "template") {
            defaults::template(template);
        }
    },
    create: generate_selector,
    validate: |object, errors| {
        let spec = &object["spec"];
        if spec["selector"].is_null() {
            errors.push(FieldError::required("spec.selector", ""));
        } else {
            selector::validate(&spec["selector"], "spec.selector", errors);
            let labels = &spec["template"]["metadata"]["labels"];
            if !selector::matches(&spec["selector"], labels) {
                let why = "`selector` does not match template `labels`";
                errors.push(FieldError::invalid("spec.template.metadata.labels", labels.clone(), why));
            }
        }
        job_spec(spec, "spec", errors);
    },
    validate_update: |new, old, errors| {
        let (spec, before) = (&new["spec"], &old["spec"]);
        errors.immutable(&spec["selector"], &before["selector"], "spec.selector");
        errors.immutable(&spec["completionMode"], &before["completionMode"], "spec.completionMode");
        let elastic = text(spec, "completionMode") == "Indexed" && spec["completions"] == spec["parallelism"];
        if !elastic {
            errors.immutable(&spec["completions"], &before["completions"], "spec.completions");
        }
        // A Job that waits may still be told where to run.
        let waiting = flag(before, "suspend") && old["status"]["startTime"].is_null();
        let mut masked = spec["template"].clone();
        if waiting && let Some(pod) = child(&mut masked, "spec") {
            for key in ["nodeSelector", "affinity", "tolerations", "schedulingGates"] {
                keep(pod, &before["template"]["spec"], key);
            }
        }
        if waiting && let Some(metadata) = child(&mut masked, "metadata") {
            for key in ["labels", "annotations"] {
                keep(metadata, &before["template"]["metadata"], key);
            }
        }
        if !same(&masked, &before["template"]) {
            let why = "field is immutable";
            errors.push(FieldError::invalid("spec.template", spec["template"].clone(), why));
        }
    },
    ..Rules::NONE
};

/// CronJobs.
pub const CRON_JOB: Rules = Rules {
    default: |object| {
        let Some(spec) = child(object, "spec") else { return };
        default(spec, "concurrencyPolicy", "Allow");
        default(spec, "suspend", false);
        default(spec, "successfulJobsHistoryLimit", 3);
        default(spec, "failedJobsHistoryLimit", 1);
        if let Some(job) = child(spec, "jobTemplate")
            && let Some(job_spec) = child(job, "spec")
            && let Some(template) = child(job_spec, "template")
        {
            defaults::template(template);
        }
    },
    validate: |object, errors| {
        let spec = &object["spec"];
        let name = super::value::name(object);
        if name.len() > 52 {
            errors.push(FieldError::invalid("metadata.name", name, "must be no more than 52 characters"));
        }
        schedule(text(spec, "schedule"), errors);
        errors.one_of(spec, "spec", "concurrencyPolicy", &["Allow", "Forbid", "Replace"]);
        for key in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
            errors.not_negative(spec, "spec", key);
        }
        job_spec(&spec["jobTemplate"]["spec"], "spec.jobTemplate.spec", errors);
    },
    ..Rules::NONE
};

fn schedule(text: &str, errors: &mut FieldErrors) {
    let path = "spec.schedule";
    if text.is_empty() {
        errors.push(FieldError::required(path, ""));
        return;
    }
    if text.contains("TZ") {
        let why = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        errors.push(FieldError::invalid(path, text, why));
        return;
    }
    if let Err(why) = cron(text) {
        errors.push(FieldError::invalid(path, text, why));
    }
}

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// Whether a schedule has five fields (crontab(5)) or is one of the known words.
fn cron(text: &str) -> Result<(), String> {
    if let Some(word) = text.strip_prefix('@') {
        let known = ["yearly", "annually", "monthly", "weekly", "daily", "midnight", "hourly"];
        if known.contains(&word) || word.strip_prefix("every ").is_some_and(|d| !d.trim().is_empty()) {
            return Ok(());
        }
        return Err(format!("unrecognized descriptor: {text}"));
    }
    let fields: Vec<&str> = text.split_whitespace().collect();
    if fields.len() != 5 {
        let listed = fields.join(" ");
        return Err(format!("expected exactly 5 fields, found {}: [{listed}]", fields.len()));
    }
    let bounds: [(u32, u32, &[&str]); 5] =
        [(0, 59, &[]), (0, 23, &[]), (1, 31, &[]), (1, 12, &MONTHS), (0, 6, &DAYS)];
    for (field, (low, high, names)) in fields.iter().zip(bounds) {
        for part in field.split(',') {
            cron_part(part, low, high, names)?;
        }
    }
    Ok(())
}

fn cron_part(part: &str, low: u32, high: u32, names: &[&str]) -> Result<(), String> {
    let (range, step) = part.split_once('/').map_or((part, None), |(r, s)| (r, Some(s)));
    if let Some(step) = step
        && !step.parse::<u32>().is_ok_and(|s| s > 0)
    {
        return Err(format!(
            "failed to parse int from {step}: strconv.Atoi: parsing {step:?}: invalid syntax"
        ));
    }
    if range == "*" || range == "?" {
        return Ok(());
    }
    let number = |text: &str| -> Result<u32, String> {
        let named = names.iter().position(|n| n.eq_ignore_ascii_case(text));
        if let Some(at) = named {
            return u32::try_from(at).map(|at| at + low).map_err(|e| e.to_string());
        }
        text.parse().map_err(|_| {
            format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax")
        })
    };
    let (first, last) = match range.split_once('-') {
        Some((a, b)) => (number(a)?, number(b)?),
        None => {
            let n = number(range)?;
            (n, n)
        }
    };
    if first < low {
        return Err(format!("beginning of range ({first}) below minimum ({low}): {part}"));
    }
    if last > high {
        return Err(format!("end of range ({last}) above maximum ({high}): {part}"));
    }
    if first > last {
        return Err(format!("beginning of range ({first}) beyond end of range ({last}): {part}"));
    }
    Ok(())
}

/// CertificateSigningRequests: who asks is set by the server, the request itself never changes.
pub const CERTIFICATE_REQUEST: Rules = Rules {
    create: |cx, object| {
        let Some(spec) = child(object, "spec") else { return };
        set(spec, "username", cx.user.name.as_str());
        set(spec, "uid", cx.user.uid.as_str());
        set(spec, "groups", json!(cx.user.groups));
        if !cx.user.extra.is_empty() {
            set(spec, "extra", json!(cx.user.extra));
        }
    },
    update: |new, old| keep(new, old, "spec"),
    validate: |object, errors| {
        let spec = &object["spec"];
        errors.present(spec, "spec", "request");
        errors.present(spec, "spec", "signerName");
        if !unset(&spec["signerName"]) && !text(spec, "signerName").contains('/') {
            let why = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
            errors.push(FieldError::invalid("spec.signerName", text(spec, "signerName"), why));
        }
        errors.present(spec, "spec", "usages");
        if int(spec, "expirationSeconds").is_some_and(|s| s < 600) {
            let why = "may not specify a duration less than 600 seconds (10 minutes)";
            errors.push(FieldError::invalid(
                "spec.expirationSeconds",
                spec["expirationSeconds"].clone(),
                why,
            ));
        }
    },
    ..Rules::NONE
};

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::kinds::fake::{Fake, context};
    use crate::resource::Resource;

    #[test]
    fn schedules() {
        for good in ["* * * * *", "*/5 0-3 1,15 jan-mar MON", "@daily", "0 0 * * 6"] {
            assert_eq!(cron(good), Ok(()), "{good}");
        }
        let table = [
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("x * * * *", "failed to parse int from x: strconv.Atoi: parsing \"x\": invalid syntax"),
            ("@never", "unrecognized descriptor: @never"),
        ];
        for (bad, why) in table {
            assert_eq!(cron(bad), Err(why.into()), "{bad}");
        }
    }

    #[test]
    fn jobs_select_their_pods_by_uid() {
        let mut job = json!({"metadata": {"name": "pi", "uid": "u1"}, "spec": {"template": {
            "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "x"}]}}}});
        (JOB.default)(&mut job);
        let cx = context(Resource::new("batch", "v1", "Job", "jobs"), "shop", Fake::with(&[]));
        (JOB.create)(&cx, &mut job);
        assert_eq!(job["spec"]["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"], "u1");
        assert_eq!(job["spec"]["template"]["metadata"]["labels"]["job-name"], "pi");
        assert_eq!(
            (job["spec"]["completions"].clone(), job["spec"]["backoffLimit"].clone()),
            (json!(1), json!(6))
        );
        let mut errors = FieldErrors::new();
        (JOB.validate)(&job, &mut errors);
        assert_eq!(errors.to_string(), "[]");

        let mut always = job.clone();
        always["spec"]["template"]["spec"]["restartPolicy"] = json!("Always");
        (JOB.validate)(&always, &mut errors);
        assert_eq!(
            errors.to_string(),
            "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""
        );
        let mut errors = FieldErrors::new();
        (JOB.validate_update)(&always, &job, &mut errors);
        assert!(errors.to_string().ends_with("field is immutable"));
    }
}
