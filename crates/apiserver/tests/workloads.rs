//! Kinds that make Pods, as kubectl makes, shows, changes and deletes them. Nobody runs them here: what controllers
//! would write into the status, the test writes.

mod support;

use serde_json::{Value, json};
use support::{Server, kubectl};

const SET: &str = r"
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  replicas: 2
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      containers:
      - {name: db, image: postgres, volumeMounts: [{name: data, mountPath: /data}]}
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
";

const DAEMONS: &str = r"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec: {nodeSelector: {disk: fast}, containers: [{name: agent, image: x}]}
";

const JOB: &str = r#"
apiVersion: batch/v1
kind: Job
metadata: {name: sum}
spec:
  completions: 3
  template: {spec: {restartPolicy: Never, containers: [{name: sum, image: x, command: ["true"]}]}}
"#;

impl Server {
    fn json(&self, arguments: &[&str]) -> Value {
        let out = self.kubectl(&[arguments, &["-o", "json"]].concat());
        serde_json::from_str(&out).expect("JSON")
    }

    /// What `kubectl describe` prints, with single blanks.
    fn described(&self, kind: &str, name: &str) -> String {
        self.kubectl(&["describe", kind, name]).split_whitespace().collect::<Vec<_>>().join(" ")
    }

    fn status(&self, object: &str, status: Value) {
        let patch = json!({ "status": status }).to_string();
        self.kubectl(&["patch", object, "--subresource=status", "--type=merge", "-p", &patch]);
    }

    /// The cells of the first row that `kubectl get` prints, and the heads.
    fn row(&self, arguments: &[&str]) -> (Vec<String>, Vec<String>) {
        let out = self.kubectl(arguments);
        let words = |line: Option<&str>| {
            let words = line.unwrap_or_default().split("  ").map(str::trim).filter(|word| !word.is_empty());
            words.map(str::to_owned).collect::<Vec<_>>()
        };
        let mut lines = out.lines();
        (words(lines.next()), words(lines.next()))
    }
}

#[test]
fn stateful_sets_are_defaulted_scaled_shown_and_mostly_fixed() {
    if kubectl().is_none() {
        return;
    }
    let server = Server::start();
    server.apply(SET);
    let set = server.json(&["get", "sts", "db"]);
    assert_eq!(set["spec"]["podManagementPolicy"], "OrderedReady");
    assert_eq!(
        set["spec"]["updateStrategy"],
        json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}})
    );
    assert_eq!(set["spec"]["volumeClaimTemplates"][0]["spec"]["volumeMode"], "Filesystem");
    server.kubectl(&["scale", "sts/db", "--replicas=3"]);
    server.kubectl(&["rollout", "restart", "sts/db"]);
    let set = server.json(&["get", "sts", "db"]);
    assert_eq!((&set["spec"]["replicas"], &set["metadata"]["generation"]), (&json!(3), &json!(3)));
    assert!(
        set["spec"]["template"]["metadata"]["annotations"]["kubectl.kubernetes.io/restartedAt"].is_string()
    );

    let status = json!({"observedGeneration": 3, "replicas": 3, "readyReplicas": 3, "availableReplicas": 3, "updatedReplicas": 3,
        "currentReplicas": 3, "currentRevision": "db-1", "updateRevision": "db-1"});
    server.status("sts/db", status);
    assert!(
        server
            .kubectl(&["rollout", "status", "sts/db"])
            .contains("partitioned roll out complete: 3 new pods")
    );
    let (heads, row) = server.row(&["get", "sts", "-o", "wide"]);
    assert_eq!(heads, ["NAME", "READY", "AGE", "CONTAINERS", "IMAGES"]);
    assert_eq!(
        (row[0].as_str(), row[1].as_str(), row[3].as_str(), row[4].as_str()),
        ("db", "3/3", "db", "postgres")
    );
    let described = server.described("sts", "db");
    for part in
        ["Replicas: 3 desired | 3 total", "Update Strategy: RollingUpdate", "Name: data", "Capacity: 1Gi"]
    {
        assert!(described.contains(part), "{part}\n{described}");
    }
    let err = server.refused(&["apply", "-f", "-"], &SET.replace("serviceName: db", "serviceName: other"));
    assert!(err.contains("updates to statefulset spec for fields other than 'replicas'"), "{err}");
    let err = server.refused(
        &["apply", "-f", "-"],
        &SET.replace("{name: db}", "{name: x}").replace("metadata: {name: data}", "metadata: {name: other}"),
    );
    assert!(err.contains("spec.template.spec.containers[0].volumeMounts[0].name"), "{err}");
    assert!(server.kubectl(&["delete", "sts", "db"]).contains("deleted"));
}

#[test]
fn daemon_sets_and_claims_are_shown_as_kubernetes_shows_them() {
    if kubectl().is_none() {
        return;
    }
    let server = Server::start();
    server.apply(DAEMONS);
    let set = server.json(&["get", "ds", "agent"]);
    assert_eq!(
        set["spec"]["updateStrategy"],
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}})
    );
    let status = json!({"observedGeneration": 1, "currentNumberScheduled": 1, "desiredNumberScheduled": 1, "numberMisscheduled": 0,
        "numberReady": 1, "numberAvailable": 1, "updatedNumberScheduled": 1});
    server.status("ds/agent", status);
    assert!(server.kubectl(&["rollout", "status", "ds/agent"]).contains("successfully rolled out"));
    let (heads, row) = server.row(&["get", "ds"]);
    assert_eq!(
        heads,
        ["NAME", "DESIRED", "CURRENT", "READY", "UP-TO-DATE", "AVAILABLE", "NODE SELECTOR", "AGE"]
    );
    assert_eq!(row[..7], ["agent", "1", "1", "1", "1", "1", "disk=fast"]);
    assert!(server.described("ds", "agent").contains("Desired Number of Nodes Scheduled: 1"));

    server.apply("{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: data}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}");
    server.kubectl(&["patch", "pvc", "data", "--type=merge", "-p", r#"{"spec":{"volumeName":"pvc-1"}}"#]);
    server.status(
        "pvc/data",
        json!({"phase": "Bound", "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}}),
    );
    let (heads, row) = server.row(&["get", "pvc"]);
    assert_eq!(
        heads,
        [
            "NAME",
            "STATUS",
            "VOLUME",
            "CAPACITY",
            "ACCESS MODES",
            "STORAGECLASS",
            "VOLUMEATTRIBUTESCLASS",
            "AGE"
        ]
    );
    assert_eq!(row[..6], ["data", "Bound", "pvc-1", "1Gi", "RWO", "<unset>"]);
    let err = server
        .refused(&["patch", "pvc", "data", "--type=merge", "-p", r#"{"spec":{"volumeName":"pvc-2"}}"#], "");
    assert!(err.contains("spec is immutable after creation"), "{err}");
}

#[test]
fn jobs_get_a_selector_and_say_how_far_they_are() {
    if kubectl().is_none() {
        return;
    }
    let server = Server::start();
    server.apply(JOB);
    let job = server.json(&["get", "job", "sum"]);
    let uid = job["metadata"]["uid"].as_str().expect("a uid");
    assert_eq!(job["spec"]["selector"]["matchLabels"], json!({"batch.kubernetes.io/controller-uid": uid}));
    let labels = &job["spec"]["template"]["metadata"]["labels"];
    assert_eq!(
        (&labels["job-name"], &labels["batch.kubernetes.io/job-name"], &labels["controller-uid"]),
        (&json!("sum"), &json!("sum"), &json!(uid))
    );
    for (key, value) in [
        ("parallelism", json!(1)),
        ("backoffLimit", json!(6)),
        ("completionMode", json!("NonIndexed")),
        ("suspend", json!(false)),
        ("podReplacementPolicy", json!("TerminatingOrFailed")),
    ] {
        assert_eq!(job["spec"][key], value, "{key}");
    }
    // The same again changes nothing, though the server added labels to the template.
    assert!(server.apply(JOB).contains("unchanged"));
    let err = server.refused(&["apply", "-f", "-"], &JOB.replace("completions: 3", "completions: 4"));
    assert!(err.contains("spec.completions") && err.contains("field is immutable"), "{err}");

    let (heads, row) = server.row(&["get", "jobs", "-o", "wide"]);
    assert_eq!(
        heads,
        ["NAME", "STATUS", "COMPLETIONS", "DURATION", "AGE", "CONTAINERS", "IMAGES", "SELECTOR"]
    );
    assert_eq!(row[..3], ["sum", "Running", "0/3"]);
    let done = json!({"startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:00:42Z", "succeeded": 3, "ready": 0,
    "conditions": [
        {"type": "SuccessCriteriaMet", "status": "True", "reason": "CompletionsReached"},
        {"type": "Complete", "status": "True", "reason": "CompletionsReached"},
    ]});
    server.status("job/sum", done);
    let (_, row) = server.row(&["get", "jobs"]);
    assert_eq!(row[..4], ["sum", "Complete", "3/3", "42s"]);
    assert!(
        server
            .kubectl(&["wait", "--for=condition=complete", "job/sum", "--timeout=5s"])
            .contains("condition met")
    );
    let described = server.described("job", "sum");
    for part in
        ["Completions:", "Duration: 42s", "Pods Statuses: 0 Active (0 Ready) / 3 Succeeded / 0 Failed"]
    {
        assert!(described.contains(part), "{part}\n{described}");
    }
    server.kubectl(&["delete", "job", "sum"]);

    // Without a file.
    server.kubectl(&["create", "job", "hello", "--image=x", "--", "echo", "hi"]);
    let job = server.json(&["get", "job", "hello"]);
    assert_eq!(job["spec"]["template"]["spec"]["containers"][0]["command"], json!(["echo", "hi"]));
    let err = server.refused(&["apply", "-f", "-"], &JOB.replace("restartPolicy: Never, ", ""));
    assert!(err.contains("spec.template.spec.restartPolicy"), "{err}");
}

#[test]
fn cron_jobs_have_schedules_that_are_read() {
    if kubectl().is_none() {
        return;
    }
    let server = Server::start();
    server.kubectl(&["create", "cronjob", "report", "--image=x", "--schedule=*/5 * * * *", "--", "date"]);
    server.kubectl(&[
        "patch",
        "cronjob",
        "report",
        "--type=merge",
        "-p",
        r#"{"spec":{"timeZone":"Europe/Berlin","suspend":true}}"#,
    ]);
    let (heads, row) = server.row(&["get", "cj"]);
    assert_eq!(heads, ["NAME", "SCHEDULE", "TIMEZONE", "SUSPEND", "ACTIVE", "LAST SCHEDULE", "AGE"]);
    assert_eq!(row[..6], ["report", "*/5 * * * *", "Europe/Berlin", "True", "0", "<none>"]);
    let described = server.described("cronjob", "report");
    for part in ["Schedule: */5 * * * *", "Concurrency Policy: Allow", "Successful Job History Limit: 3"] {
        assert!(described.contains(part), "{part}\n{described}");
    }
    server.kubectl(&["create", "job", "now", "--from=cronjob/report"]);
    let job = server.json(&["get", "job", "now"]);
    assert_eq!(job["metadata"]["ownerReferences"][0]["kind"], "CronJob");
    assert_eq!(job["metadata"]["annotations"]["cronjob.kubernetes.io/instantiate"], "manual");
    for (patch, part) in [
        (r#"{"spec":{"schedule":"61 * * * *"}}"#, "'61' is out of range for the minute"),
        (r#"{"spec":{"timeZone":"Mars/Base"}}"#, "is no time zone"),
        (r#"{"spec":{"concurrencyPolicy":"Queue"}}"#, "none of Allow, Forbid, Replace"),
    ] {
        let err = server.refused(&["patch", "cronjob", "report", "--type=merge", "-p", patch], "");
        assert!(err.contains(part), "{err}");
    }
    // All that runs is in `all`.
    server.apply(SET);
    server.apply(DAEMONS);
    let all = server.kubectl(&["get", "all", "-o", "name"]);
    for name in ["statefulset.apps/db", "daemonset.apps/agent", "job.batch/now", "cronjob.batch/report"] {
        assert!(all.contains(name), "{name}\n{all}");
    }
}

/// kubectl itself walks the ControllerRevisions; here they are as the mesh's controllers write them.
#[test]
fn rollouts_of_stateful_sets_have_a_history_and_are_undone() {
    if kubectl().is_none() {
        return;
    }
    let server = Server::start();
    server.apply(SET);
    let set = server.json(&["get", "sts", "db"]);
    let revision = |number: u32, image: &str| {
        let mut template = set["spec"]["template"].clone();
        template["spec"]["containers"][0]["image"] = image.into();
        template["$patch"] = "replace".into();
        let object = json!({
            "apiVersion": "apps/v1", "kind": "ControllerRevision", "revision": number,
            "metadata": {"name": format!("db-{number}"), "labels": {"app": "db"}, "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "uid": set["metadata"]["uid"],
                "controller": true, "blockOwnerDeletion": true,
            }]},
            "data": {"spec": {"template": template}},
        });
        server.apply(&object.to_string());
    };
    revision(1, "postgres:16");
    revision(2, "postgres");
    let history = server.kubectl(&["rollout", "history", "sts/db"]);
    assert!(
        history.lines().any(|line| line.starts_with("1 "))
            && history.lines().any(|line| line.starts_with("2 ")),
        "{history}"
    );
    assert!(server.kubectl(&["rollout", "history", "sts/db", "--revision=1"]).contains("postgres:16"));
    server.kubectl(&["rollout", "undo", "sts/db", "--to-revision=1"]);
    let set = server.json(&["get", "sts", "db"]);
    assert_eq!(set["spec"]["template"]["spec"]["containers"][0]["image"], "postgres:16");
    assert!(set["spec"]["template"].get("$patch").is_none());
    let (heads, row) = server.row(&["get", "controllerrevisions"]);
    assert_eq!(heads, ["NAME", "CONTROLLER", "REVISION", "AGE"]);
    assert_eq!(row[..3], ["db-1", "statefulset.apps/db", "1"]);
}
