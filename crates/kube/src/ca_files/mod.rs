//! A CA in files (`ROOT_CA_DIR`, reference mtls 5.5): what they hold is mirrored into the Secret `cacerts`.
//!
//! From there on it is a plugged-in CA like any other: it is checked, rotated to and kept as if somebody had written the
//! Secret. What the files held when they were mirrored stands in an annotation, and the Secret is written only when they
//! hold something else: what a rotation, or a person, puts there meanwhile stays.

mod folder;
mod mounted;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};
use maille_control::authority::{FILES_ANNOTATION, SECRET};
use tokio::time::{Instant, sleep};

use crate::root::PLUGGED_IN;
use folder::{Look, Set};
pub(crate) use mounted::is_the_secret;

/// The annotation of the Secret `cacerts` that tells which files it was last written from, and before them, the newest first.
const MARK_ANNOTATION: &str = "maille.dev/ca-files";
/// How many of these are remembered.
const MARKS: usize = 8;
/// A control plane that starts with files that another has replaced already sees them late, as a kubelet may show them, unless
/// they stay so for longer than that takes.
const LATE: Duration = Duration::from_secs(180);
/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between the two looks of a start, and between tries.
const PAUSE: Duration = Duration::from_millis(200);
/// Looks of a start until two are the same.
const STEADY_LOOKS: usize = 25;
/// Longest wait between tries to reach the API server.
const LAST_WAIT: Duration = Duration::from_secs(5);
/// Longest problem that is shown.
const LONGEST_PROBLEM: usize = 1000;

/// What people should hear of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// Something was done.
    Done(String),
    /// Something is not as it should be.
    Wrong(String),
}

/// Where it goes: a log, or a terminal.
pub type Tell = fn(News);

/// Where the files of a CA are, and whether they must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaFolder {
    /// The folder.
    pub path: PathBuf,
    /// Without the folder there is no start. One that is empty is none: what comes into it later is rotated to.
    pub must_exist: bool,
}

/// Whether a folder holds the files of a CA.
///
/// # Errors
/// If it holds some of them, or files that are no CA: what is wrong, and what would be right (CA-20).
pub fn check_ca_folder(folder: &Path) -> Result<bool, String> {
    match std::fs::metadata(folder) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return Err(format!("{} is no folder; a CA's files are read from one", folder.display())),
        Err(error) => return Err(format!("cannot read the CA's folder {}: {error}", folder.display())),
    }
    Ok(folder::look(folder)?.judge(folder)?.is_some())
}

/// Mirrors the files of a folder.
pub struct CaFiles {
    secrets: Api<Secret>,
    namespace: String,
    folder: PathBuf,
    tell: Tell,
    /// How long files of before are taken for late ones.
    late: Duration,
    started: Instant,
    /// What was last mirrored, or found mirrored, by this process.
    last: Option<String>,
    problem: Option<String>,
    /// The problem that others are shown, once that is known.
    shown: Option<Option<String>>,
}

impl std::fmt::Debug for CaFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CaFiles")
            .field("folder", &self.folder)
            .field("last", &self.last)
            .finish_non_exhaustive()
    }
}

/// Why the Secret was not written.
enum Refused {
    /// Somebody else wrote it meanwhile.
    Conflict,
    /// It was written from these files, and then from others.
    Late(String),
    Failed(String),
}

impl CaFiles {
    /// Of this folder, into the Secret of this namespace. Others may do the same, and see what is in the folder sooner or later.
    pub fn new(client: Client, namespace: &str, folder: &Path, tell: Tell) -> Self {
        Self {
            secrets: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            folder: folder.to_owned(),
            tell,
            late: LATE,
            started: Instant::now(),
            last: None,
            problem: None,
            shown: None,
        }
    }

    /// Nobody else does the same.
    #[must_use]
    pub fn alone(self) -> Self {
        Self { late: Duration::ZERO, ..self }
    }

    /// Mirrors what is there now. It comes before a control plane's first start, which would make a CA of its own else.
    /// While the API server cannot be reached, it waits.
    ///
    /// # Errors
    /// If the files are no CA.
    pub async fn begin(&mut self) -> Result<(), String> {
        let mut before = self.look().await?;
        let mut looks = 0;
        let set = loop {
            sleep(PAUSE).await;
            let now = self.look().await?;
            looks += 1;
            if now == before {
                break now.judge(&self.folder)?;
            }
            if looks > STEADY_LOOKS {
                return Err(format!(
                    "the files in {} do not stay the same; is something writing them again and again?",
                    self.folder.display()
                ));
            }
            before = now;
        };
        let Some(set) = set else { return Ok(()) };
        self.warn(&set);
        let mut wait = PAUSE;
        while let Err(refused) = self.mirror(&set).await {
            match refused {
                Refused::Conflict => {}
                // There is a CA, so that none is made.
                Refused::Late(_) => return Ok(()),
                Refused::Failed(reason) => {
                    (self.tell)(News::Wrong(format!("{reason}; trying again")));
                    wait = (wait * 2).min(LAST_WAIT);
                }
            }
            sleep(wait).await;
        }
        Ok(())
    }

    /// Follows the files, for ever.
    pub async fn keep(mut self) {
        let mut before: Option<Result<Look, String>> = None;
        let mut is_done = false;
        loop {
            let look = Some(self.look().await);
            if look == before {
                if !is_done {
                    // The same twice, so that nobody is in the middle of it.
                    let judged = match &look {
                        Some(Ok(look)) => look.judge(&self.folder),
                        Some(Err(reason)) => Err(reason.clone()),
                        None => Ok(None),
                    };
                    is_done = self.settle(judged).await;
                }
                self.show().await;
            } else {
                (before, is_done) = (look, false);
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Takes what was judged; whether there is nothing more to do until the files change.
    async fn settle(&mut self, judged: Result<Option<Set>, String>) -> bool {
        match judged {
            Ok(Some(set)) if self.last.as_ref() == Some(&set.mark) => self.has_problem(None),
            Ok(Some(set)) => match self.mirror(&set).await {
                Ok(is_written) => {
                    self.has_problem(None);
                    if is_written {
                        self.warn(&set);
                    }
                }
                Err(Refused::Conflict) => return false,
                Err(Refused::Late(reason) | Refused::Failed(reason)) => {
                    self.has_problem(Some(reason));
                    return false;
                }
            },
            Ok(None) => {
                let gone = format!(
                    "the files of the CA are gone from {}; it stays in force, in Secret {PLUGGED_IN}",
                    self.folder.display()
                );
                self.has_problem(self.last.is_some().then_some(gone));
            }
            Err(reason) => self.has_problem(Some(format!("{reason} (what was in force stays so)"))),
        }
        true
    }

    async fn look(&self) -> Result<Look, String> {
        let folder = self.folder.clone();
        let looked = tokio::task::spawn_blocking(move || folder::look(&folder)).await;
        looked.unwrap_or_else(|error| Err(format!("cannot look at the CA's files: {error}")))
    }

    fn has_problem(&mut self, problem: Option<String>) {
        if self.problem != problem {
            if let Some(problem) = &problem {
                (self.tell)(News::Wrong(problem.clone()));
            }
            self.problem = problem;
        }
    }

    fn warn(&self, set: &Set) {
        if let Some(warning) = &set.warning {
            (self.tell)(News::Wrong(warning.clone()));
        }
    }

    /// Writes the Secret, unless these files are what it was last written from; whether it did.
    async fn mirror(&mut self, set: &Set) -> Result<bool, Refused> {
        let found =
            self.secrets.get_opt(PLUGGED_IN).await.map_err(|e| self.refused("read", PLUGGED_IN, &e))?;
        let annotations = found.as_ref().and_then(|secret| secret.metadata.annotations.as_ref());
        let marks = annotations.and_then(|all| all.get(MARK_ANNOTATION)).map_or("", String::as_str);
        let before: Vec<&str> = marks.split_whitespace().collect();
        let is_written = before.first() != Some(&set.mark.as_str());
        if is_written
            && self.last.is_none()
            && before.contains(&set.mark.as_str())
            && self.started.elapsed() < self.late
        {
            return Err(Refused::Late(format!(
                "Secret {}/{PLUGGED_IN} has been written from newer files than those in {}; if these stay as they are for {} s, \
                 they are taken",
                self.namespace,
                self.folder.display(),
                self.late.as_secs()
            )));
        }
        if is_written {
            let failed = |error: kube::Error| self.refused("write", PLUGGED_IN, &error);
            let data = set.entries.iter().map(|(name, bytes)| (name.clone(), ByteString(bytes.to_vec())));
            let data: BTreeMap<String, ByteString> = data.collect();
            let older = before.into_iter().filter(|mark| *mark != set.mark);
            let marks: Vec<&str> = std::iter::once(set.mark.as_str()).chain(older).take(MARKS).collect();
            let mark = (MARK_ANNOTATION.to_owned(), marks.join(" "));
            match found {
                Some(mut secret) => {
                    secret.data = Some(data);
                    secret.metadata.managed_fields = None;
                    secret.metadata.annotations.get_or_insert_default().extend([mark]);
                    // With the version that was read in it, the API server takes it only in place of that one.
                    self.secrets
                        .replace(PLUGGED_IN, &PostParams::default(), &secret)
                        .await
                        .map_err(failed)?;
                }
                None => {
                    let metadata = ObjectMeta {
                        name: Some(PLUGGED_IN.to_owned()),
                        annotations: Some([mark].into()),
                        ..ObjectMeta::default()
                    };
                    let type_ = Some("Opaque".to_owned());
                    let secret = Secret { metadata, type_, data: Some(data), ..Secret::default() };
                    self.secrets.create(&PostParams::default(), &secret).await.map_err(failed)?;
                }
            }
            (self.tell)(News::Done(format!(
                "the CA in {} is in Secret {}/{PLUGGED_IN} now; its signing certificate has SHA-256 {}",
                self.folder.display(),
                self.namespace,
                set.signer
            )));
        }
        self.last = Some(set.mark.clone());
        Ok(is_written)
    }

    /// Lets the control planes show what is wrong with the files.
    async fn show(&mut self) {
        if self.shown.as_ref() == Some(&self.problem) {
            return;
        }
        let wanted: Option<String> = self.problem.as_ref().map(|p| p.chars().take(LONGEST_PROBLEM).collect());
        // Not stored yet, or not to be had: what was told has been told, and this is tried again.
        let Ok(found) = self.secrets.get_opt(SECRET).await else { return };
        let Some(mut secret) = found else { return };
        let annotations = secret.metadata.annotations.get_or_insert_default();
        if annotations.get(FILES_ANNOTATION) != wanted.as_ref() {
            match wanted {
                Some(problem) => annotations.insert(FILES_ANNOTATION.to_owned(), problem),
                None => annotations.remove(FILES_ANNOTATION),
            };
            secret.metadata.managed_fields = None;
            if self.secrets.replace(SECRET, &PostParams::default(), &secret).await.is_err() {
                return;
            }
        }
        self.shown = Some(self.problem.clone());
    }

    fn refused(&self, verb: &str, name: &str, error: &kube::Error) -> Refused {
        match error {
            kube::Error::Api(status) if status.code == 409 => Refused::Conflict,
            _ => {
                let (namespace, reason) = (&self.namespace, crate::brief(error));
                Refused::Failed(format!("cannot {verb} Secret {namespace}/{name}: {reason}"))
            }
        }
    }
}
