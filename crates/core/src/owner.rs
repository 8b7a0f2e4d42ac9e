//! Which workload a Pod belongs to.

/// The name people know a workload by, from the controller of its Pod: the Deployment behind a ReplicaSet, whose name
/// ends in the label `pod-template-hash`; the CronJob behind a Job, whose name ends in the time it was made for; else
/// the controller's own.
///
/// Otherwise each run of a CronJob would be a workload of its own, and leave metrics of its own behind. A Job that
/// somebody names so is taken for a CronJob's too. Source: Istio pkg/kube `GetWorkloadMetaFromPod`.
pub fn workload_of<'o>(kind: &str, name: &'o str, template_hash: Option<&str>) -> &'o str {
    let before = |end: &str| name.strip_suffix(end)?.strip_suffix('-').filter(|rest| !rest.is_empty());
    let found = match kind {
        "ReplicaSet" => template_hash.and_then(before),
        "Job" => name.rsplit_once('-').and_then(|(rest, time)| {
            let is_time = (8..=10).contains(&time.len()) && time.bytes().all(|b| b.is_ascii_digit());
            Some(rest).filter(|rest| is_time && !rest.is_empty())
        }),
        _ => None,
    };
    found.unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_by_a_controller_bears_the_name_of_what_made_that() {
        for (kind, name, hash, expected) in [
            ("ReplicaSet", "web-7d4f", Some("7d4f"), "web"),
            ("ReplicaSet", "web-7d4f", None, "web-7d4f"),
            ("ReplicaSet", "web-7d4f", Some("x"), "web-7d4f"),
            ("StatefulSet", "db-12345678", None, "db-12345678"),
            ("Job", "report-29012345", None, "report"),
            ("Job", "report-1740700000", None, "report"),
            ("Job", "report-2024", None, "report-2024"),
            ("Job", "report-2901234x", None, "report-2901234x"),
            ("Job", "-29012345", None, "-29012345"),
        ] {
            assert_eq!(workload_of(kind, name, hash), expected, "{kind} {name}");
        }
    }
}
