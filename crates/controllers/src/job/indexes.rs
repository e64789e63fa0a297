//! Sets of completion indexes, written as `0-2,5`.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;

use crate::meta;

/// The annotation and label that carry a Pod's index.
pub(super) const INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// Reads a set; what is malformed or not below `limit` is dropped.
pub(super) fn parse(text: &str, limit: i32) -> BTreeSet<i32> {
    let mut set = BTreeSet::new();
    for part in text.split(',').filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) {
            set.extend((first.max(0)..=last).take_while(|n| *n < limit));
        }
    }
    set
}

/// Writes a set; runs of three and more are shortened, as upstream does.
pub(super) fn format(set: &BTreeSet<i32>) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut run: Option<(i32, i32)> = None;
    let flush = |run: (i32, i32), parts: &mut Vec<String>| match run.1 - run.0 {
        0 => parts.push(run.0.to_string()),
        1 => parts.extend([run.0.to_string(), run.1.to_string()]),
        _ => parts.push(format!("{}-{}", run.0, run.1)),
    };
    for n in set {
        match &mut run {
            Some((_, last)) if *last + 1 == *n => *last = *n,
            _ => {
                if let Some(done) = run.replace((*n, *n)) {
                    flush(done, &mut parts);
                }
            }
        }
    }
    if let Some(done) = run {
        flush(done, &mut parts);
    }
    parts.join(",")
}

/// The index of a Pod of an Indexed Job.
pub(super) fn index_of(pod: &Pod) -> Option<i32> {
    meta::annotation_number(&pod.metadata, INDEX).and_then(|n| i32::try_from(n).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_read_and_write() {
        let set = parse("0-2,5,7-8,x,9-", 9);
        assert_eq!(set, [0, 1, 2, 5, 7, 8].into());
        assert_eq!(format(&set), "0-2,5,7,8");
        assert_eq!(format(&BTreeSet::new()), "");
        assert_eq!(parse("0-2147483647", 3), [0, 1, 2].into());
    }
}
