//! CronJob: a Job at each time of a schedule.
//!
//! Source: Kubernetes pkg/controller/cronjob/{cronjob_controllerv2,utils}.go.

use std::time::Duration;

use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, ResourceExt};
use maille_config::cron::Schedule;
use maille_config::k8s::api::batch::v1::{CronJob, CronJobStatus, Job};
use maille_config::k8s::api::core::v1::ObjectReference;
use maille_config::k8s::jiff::tz::TimeZone;
use maille_config::k8s::jiff::{SignedDuration, Timestamp};
use maille_config::k8s::meta::{ObjectMeta, Time};

use super::{Again, Desk, is_conflict, is_not_found, ownership};

const COMPONENT: &str = "cronjob-controller";
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// More times than this are not made up for (kubernetes `mostRecentScheduleTime`).
const MANY: usize = 100;
/// The clock of the schedule can be set, and stands still less often than the one that waits: look at it so often.
const LOOK: Duration = Duration::from_secs(60);
/// What a clock that is read again may be behind.
const SLACK: Duration = Duration::from_millis(50);

pub(super) async fn reconcile(desk: &Desk, namespace: &str, name: &str) -> Result<Again, kube::Error> {
    let api: Api<CronJob> = desk.api(namespace);
    let Some(cron_job) = api.get_opt(name).await? else { return Ok(None) };
    let Some(uid) = cron_job.uid().filter(|_| cron_job.metadata.deletion_timestamp.is_none()) else {
        return Ok(None);
    };
    let jobs: Api<Job> = desk.api(namespace);
    let mut own = jobs.list(&ListParams::default()).await?.items;
    own.retain(|job| ownership::is_controlled_by(job, &uid));
    own.sort_by_key(|job| (job.creation_timestamp().map(|time| time.0), job.name_any()));
    let mut worker =
        Worker { desk, api, jobs, status: cron_job.status.clone().unwrap_or_default(), cron_job };
    worker.observe(&own);
    worker.forget(&own).await?;
    let again = worker.run_due(&mut own, Timestamp::now()).await?;
    worker.write().await?;
    Ok(again)
}

/// One look at one CronJob.
struct Worker<'d> {
    desk: &'d Desk,
    api: Api<CronJob>,
    jobs: Api<Job>,
    cron_job: CronJob,
    status: CronJobStatus,
}

impl Worker<'_> {
    /// Which Jobs run, and when the last one succeeded.
    fn observe(&mut self, own: &[Job]) {
        let active: Vec<ObjectReference> =
            own.iter().filter(|job| end_of(job).is_none()).map(reference).collect();
        self.status.active = (!active.is_empty()).then_some(active);
        let last = own.iter().filter_map(|job| job.status.as_ref()?.completion_time.as_ref()).max();
        if let Some(last) = last
            && self.status.last_successful_time.as_ref().is_none_or(|before| before < last)
        {
            self.status.last_successful_time = Some(last.clone());
        }
    }

    /// Removes finished Jobs beyond the history's limits, oldest first.
    async fn forget(&self, own: &[Job]) -> Result<(), kube::Error> {
        let spec = &self.cron_job.spec;
        for (outcome, limit) in
            [("Complete", spec.successful_jobs_history_limit), ("Failed", spec.failed_jobs_history_limit)]
        {
            let default = if outcome == "Complete" { 3 } else { 1 };
            let keep = usize::try_from(limit.unwrap_or(default)).unwrap_or(0);
            let finished: Vec<&Job> = own.iter().filter(|job| end_of(job) == Some(outcome)).collect();
            for job in finished.iter().take(finished.len().saturating_sub(keep)) {
                self.delete(job).await?;
            }
        }
        Ok(())
    }

    /// Makes the Job that is due, if one is; answers when the next will be.
    async fn run_due(&mut self, own: &mut [Job], now: Timestamp) -> Result<Again, kube::Error> {
        let spec = self.cron_job.spec.clone();
        if spec.suspend == Some(true) {
            return Ok(None);
        }
        let schedule = match Schedule::parse(&spec.schedule) {
            Ok(schedule) => schedule,
            // It was accepted, so this is another version's store; the resync of the watch looks again.
            Err(problem) => {
                self.tell(true, "UnparseableSchedule", format!("unparseable schedule: {problem}"));
                return Ok(None);
            }
        };
        let zone = match spec.time_zone.as_deref().map(TimeZone::get).transpose() {
            Ok(zone) => zone.unwrap_or_else(TimeZone::system),
            Err(_) => {
                let zone = spec.time_zone.unwrap_or_default();
                self.tell(true, "UnknownTimeZone", format!("invalid timeZone: {zone:?}"));
                return Ok(None);
            }
        };
        let next = schedule.next_after(now, &zone).and_then(|next| {
            Duration::try_from(next.duration_since(now)).ok().map(|left| left.saturating_add(SLACK).min(LOOK))
        });
        let Some((due, missed)) = schedule.latest(self.earliest(now), now, &zone) else { return Ok(next) };
        if missed > MANY {
            let message = format!(
                "too many missed start times: {missed}. Set or decrease .spec.startingDeadlineSeconds or check clock skew"
            );
            self.tell(true, "TooManyMissedTimes", message);
        }
        if self.status.active.iter().flatten().any(|job| job.name.as_deref() == Some(&self.job_name(due))) {
            // It was made, and the status did not come to say so.
            self.status.last_schedule_time = Some(Time(due));
            return Ok(next);
        }
        if self.is_too_late(due, now) {
            self.tell(true, "MissSchedule", format!("Missed scheduled time to start a job: {due}"));
            return Ok(next);
        }
        let runs = self.status.active.as_ref().is_some_and(|active| !active.is_empty());
        match spec.concurrency_policy.as_deref() {
            Some("Forbid") if runs => {
                let message =
                    "Not starting job because prior execution is running and concurrency policy is Forbid";
                self.tell(false, "JobAlreadyActive", message.to_owned());
                return Ok(next);
            }
            Some("Replace") => {
                for job in own.iter().filter(|job| end_of(job).is_none()) {
                    self.delete(job).await?;
                }
                self.status.active = None;
            }
            _ => {}
        }
        match self.jobs.create(&PostParams::default(), &self.new_job(due)).await {
            Ok(job) => {
                self.tell(false, "SuccessfulCreate", format!("Created job {}", job.name_any()));
                self.status.active.get_or_insert_default().push(reference(&job));
            }
            // Made before, and over already.
            Err(error) if is_conflict(&error) => {}
            Err(kube::Error::Api(refused)) if matches!(refused.code, 400 | 403 | 404 | 422) => {
                self.tell(true, "FailedCreate", format!("Error creating job: {}", refused.message));
                return Ok(next);
            }
            Err(error) => return Err(error),
        }
        self.status.last_schedule_time = Some(Time(due));
        Ok(next)
    }

    /// From when on times count: the last one that was met, and not further back than the deadline reaches.
    fn earliest(&self, now: Timestamp) -> Timestamp {
        let last =
            self.status.last_schedule_time.as_ref().or(self.cron_job.metadata.creation_timestamp.as_ref());
        let last = last.map_or(now, |time| time.0);
        match self.deadline().and_then(|deadline| now.checked_sub(deadline).ok()) {
            Some(bound) => last.max(bound),
            None => last,
        }
    }

    fn is_too_late(&self, due: Timestamp, now: Timestamp) -> bool {
        self.deadline().is_some_and(|deadline| now.duration_since(due) > deadline)
    }

    fn deadline(&self) -> Option<SignedDuration> {
        self.cron_job.spec.starting_deadline_seconds.map(SignedDuration::from_secs)
    }

    /// The name of the Job of a time: the same time has the same name, so that it is made once.
    fn job_name(&self, due: Timestamp) -> String {
        format!("{}-{}", self.cron_job.name_any(), due.as_second() / 60)
    }

    fn new_job(&self, due: Timestamp) -> Job {
        let template = self.cron_job.spec.job_template.clone();
        let described = template.metadata.unwrap_or_default();
        let mut annotations = described.annotations.unwrap_or_default();
        annotations.insert(SCHEDULED.to_owned(), due.to_string());
        Job {
            metadata: ObjectMeta {
                name: Some(self.job_name(due)),
                namespace: self.cron_job.namespace(),
                labels: described.labels,
                annotations: Some(annotations),
                owner_references: Some(vec![ownership::reference(&self.cron_job)]),
                ..ObjectMeta::default()
            },
            spec: template.spec,
            status: None,
        }
    }

    async fn delete(&self, job: &Job) -> Result<(), kube::Error> {
        match self.jobs.delete(&job.name_any(), &DeleteParams::background()).await {
            Ok(_) => {
                self.tell(false, "SuccessfulDelete", format!("Deleted job {}", job.name_any()));
                Ok(())
            }
            Err(error) if is_not_found(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn write(self) -> Result<(), kube::Error> {
        if self.cron_job.status.as_ref() == Some(&self.status) {
            return Ok(());
        }
        let mut cron_job = self.cron_job;
        cron_job.status = Some(self.status);
        self.api.replace_status(&cron_job.name_any(), &PostParams::default(), &cron_job).await.map(|_| ())
    }

    fn tell(&self, warning: bool, reason: &str, message: String) {
        self.desk.tell(&self.cron_job, warning, reason, message, COMPONENT);
    }
}

/// How a Job ended, if it has.
fn end_of(job: &Job) -> Option<&'static str> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    ["Complete", "Failed"].into_iter().find(|type_| {
        conditions.iter().any(|condition| condition.type_ == *type_ && condition.status == "True")
    })
}

fn reference(job: &Job) -> ObjectReference {
    ObjectReference { resource_version: job.resource_version(), ..ownership::object_reference(job) }
}
