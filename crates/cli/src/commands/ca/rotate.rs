//! `maille ca rotate`: replacing what signs, and what is trusted, without losing a call.

mod material;
mod plan;
mod watch;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use maille_control::authority::{
    Action, Answer, Kind, OFFER_PREFIX, Offer, Phase, REQUEST_ANNOTATION, Request, SECRET, SECRET_TYPE,
};
use maille_control::federation::OTHERS;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};

use super::asking::Asked;
use super::rotation;
use crate::Outcome;
use crate::commands::admin::MeshArgs;
use crate::output::out;
use crate::progress::Progress;
use material::Material;

/// Replaces the authority of the mesh, step by step, each only after every live proxy has confirmed the one before.
///
/// The steps: every proxy trusts the new roots beside the old ones (distributing); the new authority signs and every proxy
/// renews (signing); the old roots are withdrawn (withdrawing). A proxy counts until its Pod is gone or its certificate has
/// ended. A rotation goes on if this command ends, and if the control plane does; `maille ca rotate` without anything else
/// while one is under way shows it and waits.
///
/// Without --to a self-signed root gives way to a new one, with a new key. --to takes a folder with ca-cert.pem,
/// ca-key.pem, root-cert.pem and cert-chain.pem, or with tls.crt, tls.key and ca.crt, or one file of PEM with the signing
/// certificate first, its key, its intermediates and its roots.
///
/// -o json prints what `maille ca status -o json` has under "rotation", "answer", "last" and "phase".
///
/// Exit code 0 if it is done (with --no-wait: accepted; with --dry-run: nothing stands in its way), 1 if it was refused or
/// still waits, 2 if the control plane could not be asked.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct RotateArgs {
    /// What is to sign: a folder or file of PEM.
    #[arg(long, value_name = "FILE_OR_DIR", conflicts_with_all = ["renew", "rollback", "proceed"])]
    to: Option<PathBuf>,
    /// Give the self-signed root a new certificate with the same key: no proxy has to renew.
    #[arg(long, conflicts_with_all = ["rollback", "proceed", "intermediate"])]
    renew: bool,
    /// With --to: refuse if the roots would change, and not just the signing certificate below them.
    #[arg(long, requires = "to")]
    intermediate: bool,
    /// Only say what would happen.
    #[arg(long, conflicts_with_all = ["rollback", "proceed"])]
    dry_run: bool,
    /// Turn the rotation under way round.
    #[arg(long, conflicts_with = "proceed")]
    rollback: bool,
    /// Wait no longer for the proxies that have not confirmed this step; calls to and from them may fail.
    #[arg(long)]
    proceed: bool,
    /// With --proceed: for this proxy only, NAMESPACE/POD or other-meshes; may be given several times.
    #[arg(long, value_name = "NAMESPACE/POD", requires = "proceed", value_parser = proxy)]
    past: Vec<String>,
    /// Do not wait for the end.
    #[arg(long)]
    no_wait: bool,
    /// How long to wait for the end: 30s, 10m, 2h.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = crate::commands::flows::seconds)]
    timeout: u64,
    /// Form of the output.
    #[arg(short = 'o', long, value_parser = ["json"])]
    output: Option<String>,
    #[command(flatten)]
    mesh: MeshArgs,
}

/// For the control plane to answer a request: it watches the Secret.
const ANSWER_TIME: Duration = Duration::from_secs(20);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(250);

pub(super) async fn run(args: RotateArgs) -> Result<Outcome> {
    let material = args.to.as_deref().map(Material::read).transpose()?;
    let asked = Asked::connect(&args.mesh).await?;
    // A control plane that cannot be asked is found before anything is written.
    let before = rotation::status(&asked).await?;
    let under_way = before.phase != Phase::Idle;
    let asks_for_nothing =
        !(args.renew || args.rollback || args.proceed || args.dry_run) && material.is_none();
    let shown = args.output.is_none();
    if under_way && asks_for_nothing {
        if shown {
            eprintln!("a rotation is under way already; this only watches it");
        }
        let id = before.rotation.as_ref().map(|rotation| rotation.id.clone()).unwrap_or_default();
        return watch::run(&asked, &id, patience(&args), shown).await;
    }
    let mut request = Request {
        id: format!("{:016x}", rand::random::<u64>()),
        action: Action::Rotate,
        to: Offer::default(),
        dry_run: args.dry_run,
        phase: None,
        past: Vec::new(),
    };
    match () {
        () if args.rollback => request.action = Action::Rollback,
        () if args.proceed => {
            request.action = Action::Proceed;
            request.phase = Some(before.phase);
            request.past = args.past.clone();
            // Exactly those that people have been told of, and none that turns up meanwhile.
            if let Some(rotation) = before.rotation.as_ref().filter(|_| args.past.is_empty()) {
                request.past = rotation.waiting.iter().map(|one| one.name.clone()).collect();
            }
        }
        () if args.renew => request.to = Offer::Renewed,
        () if material.is_some() => request.to = Offer::Stored,
        () => {}
    }
    if args.intermediate && !args.dry_run {
        let trial = Request { id: format!("{}-plan", request.id), dry_run: true, ..request.clone() };
        let answer = ask(&asked, &trial, material.as_ref()).await?;
        if let Some(refusal) = not_just_an_intermediate(&answer) {
            eprintln!("maille: {refusal}");
            return Ok(Outcome::NotFine);
        }
    }
    let answer = ask(&asked, &request, material.as_ref()).await?;
    // Keys are not kept longer than they are needed.
    drop(material);
    if args.dry_run {
        let refusal = args.intermediate.then(|| not_just_an_intermediate(&answer)).flatten();
        return plan::show(&answer, refusal, shown);
    }
    use maille_control::authority::Outcome as Said;
    if answer.outcome == Said::Refused {
        if !shown {
            out!("{}", serde_json::to_string_pretty(&json!({"answer": answer}))?);
        }
        eprintln!("maille: refused: {}", answer.message);
        return Ok(Outcome::NotFine);
    }
    if shown {
        eprintln!("accepted: {}", answer.message);
        for name in &request.past {
            eprintln!("no longer waiting for {name}: calls to and from it may fail until it has confirmed");
        }
    }
    let running = rotation::status(&asked).await?;
    let id = running.rotation.as_ref().map_or(request.id, |rotation| rotation.id.clone());
    watch::run(&asked, &id, patience(&args), shown).await
}

/// The name by which a rotation knows a proxy.
fn proxy(text: &str) -> Result<String, String> {
    let parts = text.split_once('/').filter(|(namespace, pod)| !namespace.is_empty() && !pod.is_empty());
    match parts {
        Some((_, pod)) if !pod.contains('/') => Ok(text.to_owned()),
        None if text == OTHERS => Ok(text.to_owned()),
        _ => Err("write NAMESPACE/POD, as `maille ca status` names it".to_owned()),
    }
}

fn patience(args: &RotateArgs) -> Duration {
    if args.no_wait { Duration::ZERO } else { Duration::from_secs(args.timeout) }
}

fn not_just_an_intermediate(answer: &Answer) -> Option<String> {
    let plan = answer.plan.as_ref()?;
    (plan.kind != Kind::Intermediate).then(|| {
        format!(
            "refused: it would replace {}; without --intermediate that is what happens",
            rotation::kind(plan.kind)
        )
    })
}

/// Puts the request where the control plane reads it, and waits for the answer.
async fn ask(asked: &Asked, request: &Request, material: Option<&Material>) -> Result<Answer> {
    store(asked, request, material).await?;
    let deadline = Instant::now() + ANSWER_TIME;
    let mut progress = Progress::new();
    loop {
        for pod in asked.control_planes().await? {
            // One that restarts just now is asked again.
            if let Ok(status) = asked.monitoring::<maille_control::authority::Status>(&pod, "/ca").await
                && let Some(answer) = status.answer.filter(|answer| answer.id == request.id)
            {
                return Ok(answer);
            }
        }
        if Instant::now() >= deadline {
            bail!(
                "the control plane has not answered within {} s: see `maille logs deploy/istiod -n {}`, and whether its \
                 ServiceAccount may watch Secrets there; the request stands in Secret {SECRET}",
                ANSWER_TIME.as_secs(),
                asked.namespace
            );
        }
        progress.show("waiting for the control plane's answer");
        sleep(PAUSE).await;
    }
}

/// Nothing of the Secret is read: it may hold keys.
async fn store(asked: &Asked, request: &Request, material: Option<&Material>) -> Result<()> {
    let annotations = json!({ REQUEST_ANNOTATION: serde_json::to_string(request)? });
    let entries: Map<String, Value> = match material {
        Some(material) => material.entries(OFFER_PREFIX),
        None => Map::new(),
    };
    let patch = json!({"metadata": {"annotations": annotations}, "data": entries});
    let failed = || format!("cannot write Secret {}/{SECRET}", asked.namespace);
    match asked.api.merge_patch(&asked.path("secrets", SECRET), &patch).await {
        Ok(_) => return Ok(()),
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error).with_context(failed),
    }
    let data: Map<String, Value> = entries.into_iter().filter(|(_, value)| !value.is_null()).collect();
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": SECRET_TYPE,
        "metadata": {"name": SECRET, "namespace": asked.namespace, "annotations": annotations},
        "data": data,
    });
    asked.api.create(&asked.collection("secrets"), &secret).await.with_context(failed)?;
    Ok(())
}
