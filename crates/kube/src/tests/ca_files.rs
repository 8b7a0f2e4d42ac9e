//! A CA in files, from the first start through rotations.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use maille_control::authority::{Action, Kind, Offer, Outcome, Phase, Request, Status};

use super::rotation::{SYSTEM, entry, mesh, request, root, secret_of};
use super::*;
use crate::{CaFiles, CaFolder, check_ca_folder};

const MARK: &str = "maille.dev/ca-files";

/// A folder with files, gone with it.
pub(super) struct Folder(tempfile::TempDir);

impl Folder {
    pub(super) fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn of(authority: &Authority) -> Self {
        let folder = Self::new();
        folder.fill(authority);
        folder
    }

    pub(super) fn path(&self) -> PathBuf {
        self.0.path().to_owned()
    }

    pub(super) fn fill(&self, authority: &Authority) {
        for (name, text) in authority.to_secret() {
            self.write(name, &text);
        }
    }

    /// Whole at once, as an editor does.
    pub(super) fn write(&self, name: &str, text: &str) {
        let next = self.0.path().join(".next");
        fs::write(&next, text).expect("written");
        fs::set_permissions(&next, fs::Permissions::from_mode(0o600)).expect("mode");
        fs::rename(next, self.0.path().join(name)).expect("renamed");
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.0.path().join(name)).expect("removed");
    }
}

async fn start_of(api: FakeApi, folder: &Path) -> Running {
    let path = folder.to_owned();
    start_with(api, |options| options.ca_folder = Some(CaFolder { path, must_exist: true })).await
}

impl Running {
    async fn signs(&self, authority: &Authority) -> Status {
        eventually("it signs", async || {
            let status = self.authority().await?;
            (status.phase == Phase::Idle && status.authority.signer.fingerprint == authority.signer())
                .then_some(status)
        })
        .await
    }

    async fn problem(&self, says: &str) -> String {
        eventually(says, async || {
            self.authority().await?.problems.into_iter().find(|problem| problem.contains(says))
        })
        .await
    }

    /// Walks a rotation to its end past the proxy that says nothing.
    async fn walk(&self, id: &str) {
        self.ready().await;
        for phase in [Phase::Distributing, Phase::Signing, Phase::Withdrawing] {
            self.at(phase).await;
            let past =
                Request { phase: Some(phase), ..request(&format!("{id}-{}", phase.name()), Action::Proceed) };
            let (outcome, message) = self.ask(&past).await;
            assert_eq!(outcome, Outcome::Accepted, "{message}");
        }
    }
}

/// Longer than it takes to look twice and to write: what was to happen has happened by then.
async fn looks_go_by() {
    tokio::time::sleep(Duration::from_secs(4)).await;
}

fn mark(api: &FakeApi) -> Option<String> {
    api.get("secrets", SYSTEM, PLUGGED_IN)?["metadata"]["annotations"][MARK].as_str().map(str::to_owned)
}

fn version(api: &FakeApi) -> Option<String> {
    api.get("secrets", SYSTEM, PLUGGED_IN)?["metadata"]["resourceVersion"].as_str().map(str::to_owned)
}

#[tokio::test]
async fn files_sign_from_the_first_start_and_no_root_is_made() {
    let (api, ca) = (mesh(), root(0, 7200));
    let folder = Folder::of(&ca);
    let running = start_of(api.clone(), &folder.path()).await;
    let status = running.signs(&ca).await;
    assert_eq!(status.authority.source, PLUGGED_IN);
    assert_eq!(status.last, None, "nothing was rotated");
    assert_eq!(api.get("secrets", SYSTEM, SELF_SIGNED), None);
    assert_eq!(entry(&api, PLUGGED_IN, "ca-key.pem").as_deref(), Some(ca.key_pem().as_str()));
    // The mark says nothing of the key, whatever is known of the rest: it is the same for another writing of it.
    let marked = mark(&api).expect("marked");
    running.end().await;
    let first = version(&api);
    folder.write("ca-key.pem", &format!("\n{}\n", ca.key_pem().as_str()));
    let running = start_of(api.clone(), &folder.path()).await;
    running.signs(&ca).await;
    assert_eq!(
        (mark(&api), version(&api)),
        (Some(marked), first),
        "a start writes what is not there, and else nothing"
    );
}

/// CA-20, with files; each says what is there, what lacks and what would be right.
#[tokio::test]
async fn files_that_are_no_ca_end_the_start() {
    let (ca, other) = (root(0, 7200), root(0, 7200));
    let key = maille_pki::generate_key().expect("a key");
    let public = key.public_key().expect("public");
    let (hour, now) = (Duration::from_secs(3600), std::time::SystemTime::now());
    let leaf = ca.issue_server(&public, &["istiod"], &[], hour, now).expect("issued").chain_text();
    type Spoil<'a> = Box<dyn Fn(&Folder) + 'a>;
    let spoils: [(Spoil<'_>, &[&str]); 7] = [
        (Box::new(|f| f.remove("root-cert.pem")), &["lacks root-cert.pem", "ca-cert.pem, ca-key.pem"]),
        (
            Box::new(|f| {
                f.remove("ca-cert.pem");
                f.remove("ca-key.pem")
            }),
            &["lacks ca-cert.pem, ca-key.pem"],
        ),
        (Box::new(|f| f.write("tls.crt", &ca.cert_pem())), &["lacks tls.key, ca.crt"]),
        (Box::new(|f| f.write("ca-key.pem", &other.key_pem())), &["do not belong together"]),
        (Box::new(|f| f.write("root-cert.pem", &other.roots_pem())), &["cannot be used"]),
        (
            Box::new(|f| {
                f.write("ca-cert.pem", &leaf);
                f.write("ca-key.pem", &key.to_pem())
            }),
            &["cannot sign certificates"],
        ),
        (Box::new(|f| f.write("root-cert.pem", &"x".repeat(2 << 20))), &["root-cert.pem", "1048576 bytes"]),
    ];
    for (spoil, says) in spoils {
        let folder = Folder::of(&ca);
        spoil(&folder);
        let api = mesh();
        let running = start_of(api.clone(), &folder.path()).await;
        let ended = tokio::time::timeout(Duration::from_secs(10), running.task).await;
        let error =
            ended.unwrap_or_else(|_| panic!("it goes on: {says:?}")).expect("joins").expect_err("refused");
        let error = format!("{error:#}");
        for says in says {
            assert!(error.contains(says), "{says}: {error}");
        }
        assert!(error.contains(&*folder.path().to_string_lossy()), "{error}");
        assert!(!error.contains("PRIVATE KEY"), "{error}");
        assert!(api.all("secrets").is_empty(), "nothing was made or taken");
    }
    // No folder at all, where one is asked for.
    let running = start_of(mesh(), Path::new("/nonexistent/ca")).await;
    let error = running.task.await.expect("joins").expect_err("refused");
    assert!(error.to_string().contains("/nonexistent/ca"), "{error}");
}

#[tokio::test]
async fn without_files_it_signs_itself_and_files_that_come_are_rotated_to() {
    let (api, ca) = (mesh(), root(0, 7200));
    let folder = Folder::new();
    let running = start_of(api.clone(), &folder.path()).await;
    running.at(Phase::Idle).await;
    assert!(entry(&api, SELF_SIGNED, "ca-key.pem").is_some());
    folder.fill(&ca);
    running.walk("first").await;
    assert_eq!(running.signs(&ca).await.authority.source, PLUGGED_IN);
    // Gone again, they leave everything as it is.
    for (name, _) in ca.to_secret() {
        folder.remove(name);
    }
    let problem = running.problem("are gone from").await;
    assert!(problem.contains(&*folder.path().to_string_lossy()), "{problem}");
    running.signs(&ca).await;
}

#[tokio::test]
async fn a_set_that_is_half_replaced_is_named_and_not_taken() {
    let (api, old, new) = (mesh(), root(0, 7200), root(0, 7200));
    let folder = Folder::of(&old);
    let running = start_of(api.clone(), &folder.path()).await;
    running.signs(&old).await;
    let before = version(&api);
    folder.write("ca-cert.pem", &new.cert_pem());
    let problem = running.problem("do not belong together").await;
    assert!(problem.contains("what was in force stays so"), "{problem}");
    folder.write("ca-key.pem", &new.key_pem());
    running.problem("cannot be used").await;
    assert_eq!(version(&api), before, "the Secret is as it was");
    running.signs(&old).await;
    folder.write("root-cert.pem", &new.roots_pem());
    running.at(Phase::Distributing).await;
    eventually("no problem is left", async || {
        running
            .authority()
            .await
            .filter(|status| !status.problems.iter().any(|p| p.contains("cannot be used")))
    })
    .await;
    assert_eq!(entry(&api, PLUGGED_IN, "ca-cert.pem"), Some(new.cert_pem()));
    running.walk("one").await;
    running.signs(&new).await;
}

/// As a kubelet does: all files are links through one that is exchanged.
#[tokio::test]
async fn files_that_are_exchanged_by_a_link_are_rotated_to() {
    let (api, old, new) = (mesh(), root(0, 7200), root(0, 7200));
    let folder = Folder::new();
    let (path, names) = (folder.path(), old.to_secret().map(|(name, _)| name));
    for (version, ca) in [("..1", &old), ("..2", &new)] {
        fs::create_dir(path.join(version)).expect("a folder");
        for (name, text) in ca.to_secret() {
            fs::write(path.join(version).join(name), text.as_bytes()).expect("written");
        }
    }
    symlink("..1", path.join("..data")).expect("a link");
    for name in names {
        symlink(Path::new("..data").join(name), path.join(name)).expect("a link");
    }
    let running = start_of(api.clone(), &path).await;
    running.signs(&old).await;
    symlink("..2", path.join("..next")).expect("a link");
    fs::rename(path.join("..next"), path.join("..data")).expect("exchanged");
    let status = running.at(Phase::Distributing).await;
    assert_eq!(status.rotation.expect("under way").to.signer.fingerprint, new.signer());
    running.walk("one").await;
    running.signs(&new).await;
}

/// What somebody rotates to, or rolls back, is not taken back by files that are as they were.
#[tokio::test]
async fn a_rotation_that_was_asked_for_is_not_reverted_by_the_files() {
    let (api, old, new) = (mesh(), root(0, 7200), root(0, 7200));
    let folder = Folder::of(&old);
    let running = start_of(api.clone(), &folder.path()).await;
    running.signs(&old).await;
    eventually("stored", async || entry(&api, maille_control::authority::SECRET, "state.json")).await;
    running.ready().await;
    let mut secret = api.get("secrets", SYSTEM, maille_control::authority::SECRET).expect("there");
    for (key, text) in new.to_secret() {
        secret["data"][format!("next-{key}")] = json!(k8s_openapi::ByteString(text.as_bytes().to_vec()));
    }
    api.put("secrets", secret);
    let stored = Request { to: Offer::Stored, ..request("to", Action::Rotate) };
    let (outcome, message) = running.ask(&stored).await;
    assert_eq!(outcome, Outcome::Accepted, "{message}");
    running.walk("to").await;
    running.signs(&new).await;
    assert_eq!(entry(&api, PLUGGED_IN, "ca-cert.pem"), Some(new.cert_pem()), "the rotation wrote its Secret");
    looks_go_by().await;
    let status = running.signs(&new).await;
    assert_eq!(status.last.map(|last| last.id).as_deref(), Some("to"));
    // Other files are rotated to; rolled back, they are not tried again.
    let third = root(0, 7200);
    folder.fill(&third);
    running.at(Phase::Distributing).await;
    running.ready().await;
    let (outcome, message) = running.ask(&request("back", Action::Rollback)).await;
    assert_eq!(outcome, Outcome::Accepted, "{message}");
    let (outcome, message) = running.ask(&request("on", Action::Proceed)).await;
    assert_eq!(outcome, Outcome::Accepted, "{message}; {:#?}", running.authority().await);
    running.signs(&new).await;
    looks_go_by().await;
    running.signs(&new).await;
    // Nor by a control plane that starts and finds them.
    running.end().await;
    let running = start_of(api.clone(), &folder.path()).await;
    looks_go_by().await;
    let status = running.signs(&new).await;
    assert!(status.last.is_some_and(|last| last.rolled_back));
    // And the ones of the beginning are others than these.
    folder.fill(&old);
    let status = running.at(Phase::Distributing).await;
    assert_eq!(status.rotation.expect("under way").to.signer.fingerprint, old.signer());
}

#[tokio::test]
async fn two_control_planes_with_the_same_files_write_once() {
    let (api, old, new) = (mesh(), root(0, 7200), root(0, 7200));
    let folder = Folder::of(&old);
    let (one, other) =
        (start_of(api.clone(), &folder.path()).await, start_of(api.clone(), &folder.path()).await);
    for running in [&one, &other] {
        running.signs(&old).await;
    }
    folder.fill(&new);
    for running in [&one, &other] {
        running.at(Phase::Distributing).await;
    }
    let written = version(&api);
    looks_go_by().await;
    assert_eq!(version(&api), written);
    // One that still sees other files than another has taken lets them be: they are no news.
    let late = Folder::of(&new);
    let third = start_of(api.clone(), &late.path()).await;
    third.at(Phase::Distributing).await;
    let newest = root(0, 7200);
    folder.fill(&newest);
    eventually("taken", async || {
        (entry(&api, PLUGGED_IN, "ca-cert.pem")? == newest.cert_pem()).then_some(())
    })
    .await;
    let written = version(&api);
    looks_go_by().await;
    assert_eq!(version(&api), written);
}

/// A kubelet may show a container that starts again what was in the folder before; and a person may put it there again.
#[tokio::test]
async fn files_that_were_replaced_already_are_late_ones_unless_nobody_else_writes() {
    let (api, old, new) = (mesh(), root(0, 7200), root(0, 7200));
    let (folder, late) = (Folder::of(&old), Folder::of(&old));
    let one = start_of(api.clone(), &folder.path()).await;
    one.signs(&old).await;
    folder.fill(&new);
    one.at(Phase::Distributing).await;
    let written = version(&api);
    let other = start_of(api.clone(), &late.path()).await;
    let problem = other.problem("newer files").await;
    assert!(problem.contains(&*late.path().to_string_lossy()), "{problem}");
    looks_go_by().await;
    assert_eq!(version(&api), written);
    late.fill(&new);
    eventually("no problem is left", async || {
        let problems = other.authority().await?.problems;
        (!problems.iter().any(|problem| problem.contains("newer files"))).then_some(())
    })
    .await;
    assert_eq!(version(&api), written);
    // Where nobody else does, somebody has put them back.
    late.fill(&old);
    let late = CaFiles::new(api.client(), SYSTEM, &late.path(), |_| {});
    late.alone().begin().await.expect("taken");
    assert_eq!(entry(&api, PLUGGED_IN, "ca-cert.pem"), Some(old.cert_pem()));
}

/// The mounted Secret follows the Secret only after a while, and would take back what is written to it.
#[tokio::test]
async fn the_secret_mounted_as_a_folder_is_not_mirrored_into_itself() {
    let (api, old, new) = (mesh(), root(0, 7200), root(0, 7200));
    let folder = Folder::of(&old);
    api.put("secrets", secret_of(PLUGGED_IN, &old));
    let mount = json!({ "name": "cacerts", "mountPath": folder.path() });
    api.put(
        "pods",
        json!({
            "metadata": { "namespace": SYSTEM, "name": "istiod-1", "uid": "istiod-1" },
            "spec": {
                "containers": [{ "name": "discovery", "volumeMounts": [mount] }],
                "volumes": [{ "name": "cacerts", "secret": { "secretName": PLUGGED_IN } }],
            },
        }),
    );
    let path = folder.path();
    let running = start_with(api.clone(), |options| {
        options.ca_folder = Some(CaFolder { path, must_exist: true });
        options.pod = Some("istiod-1".to_owned());
    })
    .await;
    running.signs(&old).await;
    assert_eq!(mark(&api), None);
    api.put("secrets", secret_of(PLUGGED_IN, &new));
    running.at(Phase::Distributing).await;
    folder.fill(&root(0, 7200));
    looks_go_by().await;
    assert_eq!(entry(&api, PLUGGED_IN, "ca-cert.pem"), Some(new.cert_pem()));
}

/// A Secret of type TLS, mounted; and what signs is replaced below the same root by the list of what it revoked.
#[tokio::test]
async fn files_of_a_tls_secret_and_lists_of_revoked_certificates_are_taken() {
    let (api, ca) = (mesh(), super::revocations::root("files"));
    let folder = Folder::new();
    for (name, text) in [("tls.crt", &ca.certificate), ("tls.key", &ca.key), ("ca.crt", &ca.certificate)] {
        folder.write(name, text);
    }
    let running = start_of(api.clone(), &folder.path()).await;
    running.ready().await;
    assert_eq!(entry(&api, PLUGGED_IN, "tls.crt").as_ref(), Some(&ca.certificate));
    folder.write("ca-crl.pem", &ca.list);
    eventually("the list is told to the proxies", async || {
        let map = api.get("configmaps", "shop", crate::published::LISTS.name)?;
        map["data"][crate::published::LISTS.key].as_str().filter(|text| text.contains("X509 CRL")).map(drop)
    })
    .await;
    let status = running.at(Phase::Idle).await;
    assert_eq!(status.last, None, "the same CA with a list is no rotation: {:?}", Kind::Trust);
}

#[test]
fn a_folder_is_judged_before_anything_starts() {
    let ca = root(0, 7200);
    assert_eq!(check_ca_folder(&Folder::of(&ca).path()), Ok(true));
    assert_eq!(check_ca_folder(&Folder::new().path()), Ok(false));
    let folder = Folder::of(&ca);
    folder.remove("ca-key.pem");
    let pipe = std::process::Command::new("mkfifo").arg(folder.path().join("ca-key.pem")).status();
    assert!(pipe.expect("mkfifo").success());
    let error = check_ca_folder(&folder.path()).expect_err("a pipe");
    assert!(error.contains("ca-key.pem: it is no file"), "{error}");
    let file = folder.path().join("ca-cert.pem");
    assert!(check_ca_folder(&file).expect_err("a file").contains("no folder"));
}
