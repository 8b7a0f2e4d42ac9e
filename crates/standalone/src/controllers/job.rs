//! Job: Pods that run to their end, until enough of them have.
//!
//! Source: Kubernetes pkg/controller/job, pkg/controller/ttlafterfinished.

mod indexes;
mod plan;
mod policy;
mod tally;

use std::collections::BTreeSet;
use std::time::Duration;

use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use maille_config::k8s::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use maille_config::k8s::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use maille_config::k8s::jiff::{SignedDuration, Timestamp};
use maille_config::k8s::meta::{ObjectMeta, Time};
use serde_json::json;

use super::replicaset::without_suffix;
use super::{Again, Desk, is_not_found, ownership, pods};
use plan::Decision;
use tally::TRACKING;

const COMPONENT: &str = "job-controller";
const JOB_NAME: &str = "batch.kubernetes.io/job-name";
const COMPLETION_INDEX: &str = "JOB_COMPLETION_INDEX";

/// The Job that a Pod is to be counted for, whoever owns it now.
pub(super) fn of_tracked(pod: &Pod) -> Option<String> {
    pod.labels().get(JOB_NAME).filter(|_| tally::is_tracked(pod)).cloned()
}

pub(super) async fn reconcile(desk: &Desk, namespace: &str, name: &str) -> Result<Again, kube::Error> {
    let api: Api<Job> = desk.api(namespace);
    let pods: Api<Pod> = desk.api(namespace);
    let job = api.get_opt(name).await?;
    let uid = job.as_ref().and_then(ResourceExt::uid);
    let (own, others): (Vec<Pod>, Vec<Pod>) = pods
        .list(&ListParams::default())
        .await?
        .items
        .into_iter()
        .partition(|pod| uid.as_ref().is_some_and(|uid| ownership::is_controlled_by(pod, uid)));
    // Pods of a Job that is gone, or that were let go, are counted by nobody.
    for pod in others.iter().filter(|pod| of_tracked(pod).as_deref() == Some(name)) {
        release(&pods, pod).await?;
    }
    match job {
        Some(job) => Worker { desk, api, pods, job, now: Timestamp::now() }.work(own).await,
        None => Ok(None),
    }
}

/// Takes the finalizer off a Pod.
async fn release(api: &Api<Pod>, pod: &Pod) -> Result<(), kube::Error> {
    let rest: Vec<&String> = pod.finalizers().iter().filter(|finalizer| *finalizer != TRACKING).collect();
    let patch = json!({"metadata": {"uid": pod.uid(), "finalizers": rest}});
    match api.patch(&pod.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
        Err(error) if !is_not_found(&error) => Err(error),
        _ => Ok(()),
    }
}

/// One look at one Job.
struct Worker<'d> {
    desk: &'d Desk,
    api: Api<Job>,
    pods: Api<Pod>,
    job: Job,
    now: Timestamp,
}

impl Worker<'_> {
    async fn work(mut self, mut own: Vec<Pod>) -> Result<Again, kube::Error> {
        let spec = self.job.spec.clone().unwrap_or_default();
        let mut status = self.job.status.clone().unwrap_or_default();
        if ["Complete", "Failed"].into_iter().any(|type_| holds(&status, type_)) {
            return self.finished(&spec, &status, &own).await;
        }
        let goes = self.job.metadata.deletion_timestamp.is_some();
        let failing = holds(&status, "FailureTarget");
        let succeeding = holds(&status, "SuccessCriteriaMet");
        self.count(&spec, &mut status, &mut own, goes || failing).await?;
        if goes {
            return self.write(status).await.map(|()| None);
        }
        if spec.suspend != Some(true) && status.start_time.is_none() {
            status.start_time = Some(Time(self.now));
        }
        let decision = match condition(&status, "FailureTarget").or(condition(&status, "SuccessCriteriaMet"))
        {
            // What was decided stays.
            Some(_) if failing || succeeding => None,
            Some(decided) => Some(Decision::Fail {
                reason: "PodFailurePolicy",
                message: decided.message.clone().unwrap_or_default(),
            }),
            None => Some(plan::decide(&spec, &status, &own, self.now)),
        };
        let mut again = None;
        match decision {
            None => self.wind_up(&own, failing).await?,
            Some(Decision::Fail { reason, message }) => {
                set(&mut status, "FailureTarget", true, reason, &message, self.now);
                self.wind_up(&own, true).await?;
            }
            Some(Decision::Succeed { reason, message }) => {
                set(&mut status, "SuccessCriteriaMet", true, reason, &message, self.now);
                self.wind_up(&own, false).await?;
            }
            Some(Decision::Suspend) => {
                if !holds(&status, "Suspended") {
                    set(&mut status, "Suspended", true, "JobSuspended", "Job suspended", self.now);
                    self.tell(false, "Suspended", "Job suspended".to_owned());
                }
                status.start_time = None;
                self.wind_up(&own, false).await?;
            }
            Some(Decision::Run { create, surplus, again: wait }) => {
                if holds(&status, "Suspended") {
                    set(&mut status, "Suspended", false, "JobResumed", "Job resumed", self.now);
                    status.start_time = Some(Time(self.now));
                    self.tell(false, "Resumed", "Job resumed".to_owned());
                }
                // The status first: a Pod that ends at once is counted by what stands there.
                let made = create.len();
                self.describe(&mut status, &own);
                self.write(status.clone()).await?;
                self.shrink(&own, surplus).await?;
                let refused = !self.grow(&create).await?;
                again = if refused || made > 0 { wait.filter(|wait| !wait.is_zero()) } else { wait };
                if made > 0 && wait == Some(Duration::ZERO) {
                    again = Some(Duration::from_millis(100));
                }
                return Ok(again);
            }
        }
        self.describe(&mut status, &own);
        self.conclude(&mut status, &own);
        self.write(status).await?;
        Ok(again)
    }

    /// Counts what has ended.
    async fn count(
        &mut self,
        spec: &JobSpec,
        status: &mut JobStatus,
        own: &mut [Pod],
        over: bool,
    ) -> Result<(), kube::Error> {
        let tally = tally::take(spec, status, own, over);
        if !tally.release.is_empty() {
            tally::write_down(spec, status, &tally);
            if let Some(message) = &tally.fatal {
                set(status, "FailureTarget", true, "PodFailurePolicy", message, self.now);
            }
            self.write(status.clone()).await?;
            let released: BTreeSet<&String> = tally.release.iter().collect();
            for pod in own.iter_mut().filter(|pod| released.contains(&pod.name_any())) {
                release(&self.pods, pod).await?;
                pod.finalizers_mut().retain(|finalizer| finalizer != TRACKING);
            }
        }
        let tracked = own.iter().filter(|pod| tally::is_tracked(pod)).filter_map(ResourceExt::uid).collect();
        tally::count(spec, status, &tracked);
        Ok(())
    }

    /// What the status says of Pods that have not ended.
    fn describe(&self, status: &mut JobStatus, own: &[Pod]) {
        let count = |wanted: &dyn Fn(&Pod) -> bool| {
            Some(i32::try_from(own.iter().filter(|pod| wanted(pod)).count()).unwrap_or(i32::MAX))
        };
        status.active = count(&tally::is_active);
        status.ready = count(&|pod| tally::is_active(pod) && pods::is_ready(pod));
        status.terminating = count(&tally::is_terminating);
    }

    /// The last word, once no Pod runs any longer and all are counted.
    fn conclude(&self, status: &mut JobStatus, own: &[Pod]) {
        let all_counted = status.uncounted_terminated_pods.as_ref().is_none_or(|uncounted| {
            uncounted.failed.as_ref().is_none_or(Vec::is_empty)
                && uncounted.succeeded.as_ref().is_none_or(Vec::is_empty)
        });
        if own.iter().any(|pod| !tally::has_ended(pod)) || !all_counted {
            return;
        }
        let decided = |type_: &str| {
            let condition = condition(status, type_)?;
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            Some((text(&condition.reason), text(&condition.message)))
        };
        if let Some((reason, message)) = decided("FailureTarget") {
            set(status, "Failed", true, &reason, &message, self.now);
            self.tell(true, &reason, message);
        } else if let Some((reason, message)) = decided("SuccessCriteriaMet") {
            set(status, "Complete", true, &reason, &message, self.now);
            status.completion_time = Some(Time(self.now));
            self.tell(false, "Completed", "Job completed".to_owned());
        }
    }

    /// Ends what still runs; unless the Job fails, nothing of it counts.
    async fn wind_up(&self, own: &[Pod], failing: bool) -> Result<(), kube::Error> {
        for pod in own.iter().filter(|pod| tally::is_active(pod)) {
            if !failing {
                release(&self.pods, pod).await?;
            }
            self.delete(pod).await?;
        }
        Ok(())
    }

    async fn shrink(&self, own: &[Pod], surplus: usize) -> Result<(), kube::Error> {
        let mut active: Vec<Pod> = own.iter().filter(|pod| tally::is_active(pod)).cloned().collect();
        pods::by_worth(&mut active);
        for pod in active.iter().take(surplus) {
            release(&self.pods, pod).await?;
            self.delete(pod).await?;
        }
        Ok(())
    }

    async fn delete(&self, pod: &Pod) -> Result<(), kube::Error> {
        match self.pods.delete(&pod.name_any(), &DeleteParams::default()).await {
            Ok(_) => {
                self.tell(false, "SuccessfulDelete", format!("Deleted pod: {}", pod.name_any()));
                Ok(())
            }
            Err(error) if is_not_found(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Makes Pods; `false` if the API refuses them, which people are told and the resync tries again.
    async fn grow(&self, create: &[Option<i32>]) -> Result<bool, kube::Error> {
        for index in create {
            let pod = new_pod(&self.job, *index);
            match self.pods.create(&PostParams::default(), &pod).await {
                Ok(made) => {
                    self.tell(false, "SuccessfulCreate", format!("Created pod: {}", made.name_any()));
                }
                Err(kube::Error::Api(refused)) if matches!(refused.code, 400 | 403 | 404 | 422) => {
                    let prefix = pod.metadata.generate_name.unwrap_or_default();
                    let message = without_suffix(&refused.message, &prefix);
                    self.tell(true, "FailedCreate", format!("Error creating: {message}"));
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Nothing is left to do but to forget it in time.
    async fn finished(&self, spec: &JobSpec, status: &JobStatus, own: &[Pod]) -> Result<Again, kube::Error> {
        for pod in own.iter().filter(|pod| tally::is_tracked(pod)) {
            release(&self.pods, pod).await?;
        }
        let Some(keep) = spec.ttl_seconds_after_finished else { return Ok(None) };
        let ended = ["Complete", "Failed"].into_iter().find_map(|type_| condition(status, type_));
        let Some(ended) = ended.and_then(|condition| condition.last_transition_time.as_ref()) else {
            return Ok(None);
        };
        let age = self.now.duration_since(ended.0);
        let left = SignedDuration::from_secs(i64::from(keep)) - age;
        if let Ok(left) = Duration::try_from(left)
            && !left.is_zero()
        {
            return Ok(Some(left));
        }
        if self.job.metadata.deletion_timestamp.is_none() {
            match self.api.delete(&self.job.name_any(), &DeleteParams::background()).await {
                Err(error) if !is_not_found(&error) => return Err(error),
                _ => {}
            }
        }
        Ok(None)
    }

    async fn write(&mut self, status: JobStatus) -> Result<(), kube::Error> {
        if self.job.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let mut job = self.job.clone();
        job.status = Some(status);
        // The whole of it, onto the version that was read: nothing is added twice.
        self.job = self.api.replace_status(&job.name_any(), &PostParams::default(), &job).await?;
        Ok(())
    }

    fn tell(&self, warning: bool, reason: &str, message: String) {
        self.desk.tell(&self.job, warning, reason, message, COMPONENT);
    }
}

fn condition<'s>(status: &'s JobStatus, type_: &str) -> Option<&'s JobCondition> {
    let mut conditions = status.conditions.iter().flatten();
    conditions.find(|condition| condition.type_ == type_ && condition.status == "True")
}

fn holds(status: &JobStatus, type_: &str) -> bool {
    condition(status, type_).is_some()
}

fn set(status: &mut JobStatus, type_: &str, holds: bool, reason: &str, message: &str, now: Timestamp) {
    let conditions = status.conditions.get_or_insert_default();
    conditions.retain(|condition| condition.type_ != type_);
    conditions.push(JobCondition {
        type_: type_.to_owned(),
        status: if holds { "True" } else { "False" }.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    });
}

fn new_pod(job: &Job, index: Option<i32>) -> Pod {
    let template = job.spec.clone().unwrap_or_default().template;
    let described = template.metadata.unwrap_or_default();
    let mut labels = described.labels.unwrap_or_default();
    let mut annotations = described.annotations.unwrap_or_default();
    let mut spec = template.spec.unwrap_or_default();
    let mut prefix = format!("{}-", job.name_any());
    if let Some(index) = index {
        spec.hostname = Some(format!("{prefix}{index}"));
        prefix = format!("{prefix}{index}-");
        labels.insert(indexes::INDEX.to_owned(), index.to_string());
        annotations.insert(indexes::INDEX.to_owned(), index.to_string());
        for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
            let variables = container.env.get_or_insert_default();
            if variables.iter().all(|variable| variable.name != COMPLETION_INDEX) {
                variables.push(completion_index());
            }
        }
    }
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(prefix),
            namespace: job.namespace(),
            labels: Some(labels),
            annotations: (!annotations.is_empty()).then_some(annotations),
            finalizers: Some(vec![TRACKING.to_owned()]),
            owner_references: Some(vec![ownership::reference(job)]),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    }
}

fn completion_index() -> EnvVar {
    EnvVar {
        name: COMPLETION_INDEX.to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: None,
                field_path: format!("metadata.annotations['{}']", indexes::INDEX),
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    }
}
