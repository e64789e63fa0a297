//! Volumes, claims, classes.

use serde_json::Value;

use super::format::{age_of, count, list, or};
use super::{AGE, NAME, Printer, boolean, number, text, wide};
use crate::object::meta;

pub(super) fn printer(plural: &str) -> Option<&'static Printer> {
    Some(match plural {
        "persistentvolumes" => &VOLUMES,
        "persistentvolumeclaims" => &CLAIMS,
        "storageclasses" => &CLASSES,
        "volumeattachments" => &ATTACHMENTS,
        "csinodes" => &CSI_NODES,
        "csidrivers" => &CSI_DRIVERS,
        "csistoragecapacities" => &CAPACITIES,
        _ => return None,
    })
}

/// `RWO,ROX,...`, each once.
fn modes(value: &Value) -> String {
    let mut out: Vec<&str> = Vec::new();
    let known = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    for (long, short) in known {
        if list(value).iter().any(|m| m == long) {
            out.push(short);
        }
    }
    out.join(",")
}

fn phase(object: &Value) -> &str {
    if object["metadata"]["deletionTimestamp"].is_null() {
        or(&object["status"]["phase"], "")
    } else {
        "Terminating"
    }
}

fn class(object: &Value) -> &str {
    let old = &object["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"];
    or(old, or(&object["spec"]["storageClassName"], ""))
}

static VOLUMES: Printer = Printer {
    columns: &[
        NAME,
        text("Capacity"),
        text("Access Modes"),
        text("Reclaim Policy"),
        text("Status"),
        text("Claim"),
        text("StorageClass"),
        text("VolumeAttributesClass"),
        text("Reason"),
        AGE,
        wide("VolumeMode"),
    ],
    cells: |o, now| {
        let spec = &o["spec"];
        let claim = &spec["claimRef"];
        let claim = if claim.is_null() {
            String::new()
        } else {
            format!("{}/{}", or(&claim["namespace"], ""), or(&claim["name"], ""))
        };
        vec![
            meta(o, "name").into(),
            or(&spec["capacity"]["storage"], "").into(),
            modes(&spec["accessModes"]).into(),
            or(&spec["persistentVolumeReclaimPolicy"], "").into(),
            phase(o).into(),
            claim.into(),
            class(o).into(),
            or(&spec["volumeAttributesClassName"], "<unset>").into(),
            or(&o["status"]["reason"], "").into(),
            age_of(o, now),
            or(&spec["volumeMode"], "<unset>").into(),
        ]
    },
};

static CLAIMS: Printer = Printer {
    columns: &[
        NAME,
        text("Status"),
        text("Volume"),
        text("Capacity"),
        text("Access Modes"),
        text("StorageClass"),
        text("VolumeAttributesClass"),
        AGE,
        wide("VolumeMode"),
    ],
    cells: |o, now| {
        let (spec, status) = (&o["spec"], &o["status"]);
        let bound = !or(&spec["volumeName"], "").is_empty();
        vec![
            meta(o, "name").into(),
            phase(o).into(),
            or(&spec["volumeName"], "").into(),
            if bound { or(&status["capacity"]["storage"], "") } else { "" }.into(),
            if bound { modes(&status["accessModes"]) } else { String::new() }.into(),
            class(o).into(),
            or(&spec["volumeAttributesClassName"], "<unset>").into(),
            age_of(o, now),
            or(&spec["volumeMode"], "<unset>").into(),
        ]
    },
};

static CLASSES: Printer = Printer {
    columns: &[
        NAME,
        text("Provisioner"),
        text("ReclaimPolicy"),
        text("VolumeBindingMode"),
        boolean("AllowVolumeExpansion"),
        AGE,
    ],
    cells: |o, now| {
        let default = o["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"] == "true";
        let name = meta(o, "name");
        vec![
            if default { format!("{name} (default)") } else { name.to_owned() }.into(),
            or(&o["provisioner"], "").into(),
            or(&o["reclaimPolicy"], "Delete").into(),
            or(&o["volumeBindingMode"], "Immediate").into(),
            o["allowVolumeExpansion"].as_bool().unwrap_or(false).into(),
            age_of(o, now),
        ]
    },
};

static ATTACHMENTS: Printer = Printer {
    columns: &[NAME, text("Attacher"), text("PV"), text("Node"), boolean("Attached"), AGE],
    cells: |o, now| {
        let spec = &o["spec"];
        vec![
            meta(o, "name").into(),
            or(&spec["attacher"], "").into(),
            or(&spec["source"]["persistentVolumeName"], "").into(),
            or(&spec["nodeName"], "").into(),
            o["status"]["attached"].as_bool().unwrap_or(false).into(),
            age_of(o, now),
        ]
    },
};

static CSI_NODES: Printer = Printer {
    columns: &[NAME, number("Drivers"), AGE],
    cells: |o, now| vec![meta(o, "name").into(), count(&o["spec"]["drivers"]).into(), age_of(o, now)],
};

static CSI_DRIVERS: Printer = Printer {
    columns: &[
        NAME,
        boolean("AttachRequired"),
        boolean("PodInfoOnMount"),
        boolean("StorageCapacity"),
        text("TokenRequests"),
        boolean("RequiresRepublish"),
        text("Modes"),
        AGE,
    ],
    cells: |o, now| {
        let spec = &o["spec"];
        let texts = |value: &Value, key: Option<&str>| {
            let one = |v: &Value| key.map_or(v, |k| &v[k]).as_str().unwrap_or_default().to_owned();
            list(value).iter().map(one).collect::<Vec<_>>().join(",")
        };
        let tokens = texts(&spec["tokenRequests"], Some("audience"));
        vec![
            meta(o, "name").into(),
            spec["attachRequired"].as_bool().unwrap_or(true).into(),
            spec["podInfoOnMount"].as_bool().unwrap_or(false).into(),
            spec["storageCapacity"].as_bool().unwrap_or(false).into(),
            if tokens.is_empty() { "<unset>".into() } else { tokens.into() },
            spec["requiresRepublish"].as_bool().unwrap_or(false).into(),
            texts(&spec["volumeLifecycleModes"], None).into(),
            age_of(o, now),
        ]
    },
};

static CAPACITIES: Printer = Printer {
    columns: &[NAME, text("StorageClass"), text("Capacity")],
    cells: |o, _| {
        vec![
            meta(o, "name").into(),
            or(&o["storageClassName"], "").into(),
            or(&o["capacity"], "<unset>").into(),
        ]
    },
};
