//! `maille ca revoke`: taking a right away before its certificate ends.

mod force;
mod list;

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use maille_control::revocation::{self, Entry, Revoked, normal_serial};
use maille_core::Identity;
use serde_json::{Value, json};

use super::asking::{Asked, now};
use super::described::moment;
use crate::Outcome;
use crate::commands::admin::{self, MeshArgs};
use crate::output::out;
use list::{Change, Kept};

/// Takes the right of a workload away, in new connections and open ones, within seconds; or gives it back.
///
/// What is revoked is an identity, that is a ServiceAccount, with all Pods that run as it; a Pod names that of its own.
/// Nothing is issued to a revoked identity. With --before, only what was issued before that moment is revoked: `--before
/// now` makes stolen keys useless while the workload, by its token, gets a new certificate and goes on. --serial revokes
/// one certificate.
///
/// The list is ConfigMap istio-ca-revocations in the control plane's namespace: whoever may change it may revoke. Then the
/// command waits until every connected proxy has it in force. -o json prints {"changed", "revoked", "entries", "version",
/// "connected", "inForce", "waiting": [{"name", "why"}]}.
///
/// Exit code 0 if every connected proxy has it in force, 1 if one has not in time, 2 if nothing was written.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct RevokeArgs {
    /// Whom: a Pod ([TYPE/]NAME[.NAMESPACE]) or spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT.
    #[arg(value_name = "POD|IDENTITY", required_unless_present = "serial", conflicts_with = "serial")]
    whom: Option<String>,
    /// One certificate, by its serial number in hexadecimal.
    #[arg(long, value_name = "HEX")]
    serial: Option<String>,
    /// Of an identity, only certificates issued before this moment: RFC 3339, or 'now'.
    #[arg(long, value_name = "TIME", conflicts_with_all = ["serial", "undo"])]
    before: Option<String>,
    /// Why, for those who read the list.
    #[arg(long, value_name = "TEXT", conflicts_with = "undo")]
    reason: Option<String>,
    /// Take the revocation back.
    #[arg(long)]
    undo: bool,
    /// Do not wait for the proxies.
    #[arg(long)]
    no_wait: bool,
    /// How long to wait for the proxies: 30s, 2m.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = crate::commands::flows::seconds)]
    timeout: u64,
    /// Form of the output.
    #[arg(short = 'o', long, value_parser = ["json"])]
    output: Option<String>,
    #[command(flatten)]
    mesh: MeshArgs,
}

/// How far the clock here may be ahead of the control plane's when somebody writes down the time.
const SKEW: Duration = Duration::from_secs(300);

pub(super) async fn run(args: RevokeArgs) -> Result<Outcome> {
    let asked = Asked::connect(&args.mesh).await?;
    let target = target(&asked, &args).await?;
    let change = match args.undo {
        true => Change::Undo(target.clone()),
        false => Change::Add(Entry {
            reason: args.reason.clone().filter(|reason| !reason.trim().is_empty()),
            by: who(&asked).await,
            at: Some(moment(now())),
            ..entry_of(&target)
        }),
    };
    let kept = write(&asked, &change).await?;
    let what = told(&target);
    let as_json = args.output.is_some();
    let said = match (&change, kept.changed) {
        (Change::Add(_), true) => format!("{what} is revoked"),
        (Change::Add(_), false) => format!("{what} was revoked already"),
        (Change::Undo(_), true) => format!("{what} is no longer revoked"),
        (Change::Undo(_), false) => format!("{what} was not revoked"),
    };
    if !as_json {
        out!("{said}");
    }
    for note in kept.notes {
        eprintln!("note: {note}");
    }
    let patience = if args.no_wait { Duration::ZERO } else { Duration::from_secs(args.timeout) };
    let force = force::wait(&asked, &target, !args.undo, patience, !as_json).await?;
    match as_json {
        true => {
            let mut value = force.to_json();
            value["changed"] = json!(kept.changed);
            value["revoked"] = json!(!args.undo);
            value["entries"] = json!(kept.entries);
            out!("{}", serde_json::to_string_pretty(&value)?);
        }
        false => force.print(),
    }
    Ok(if args.no_wait || force.is_everywhere() { Outcome::Fine } else { Outcome::NotFine })
}

/// What the arguments mean.
async fn target(asked: &Asked, args: &RevokeArgs) -> Result<Revoked> {
    if let Some(serial) = &args.serial {
        return normal_serial(serial).map(Revoked::Serial).map_err(anyhow::Error::msg);
    }
    let whom = args.whom.as_deref().context("name a Pod, an identity or a --serial; see --help")?;
    let before = match args.before.as_deref() {
        // Whole seconds, as certificates have them.
        Some("now") => Some(moment(now())),
        Some(time) => Some(time.to_owned()),
        None => None,
    };
    let is_of_pod = Identity::parse_uri(whom).is_err();
    let identity = match Identity::parse_uri(whom) {
        Ok(_) => whom.to_owned(),
        Err(error) if whom.contains("://") => bail!("'{whom}' is no SPIFFE ID of a workload: {error}"),
        Err(_) => identity_of_pod(asked, whom, args.mesh.namespace()).await?,
    };
    let read = Entry { identity: Some(identity), before, ..Entry::default() }.read();
    let read = read.map_err(anyhow::Error::msg)?;
    if let Revoked::Identity(identity, before) = &read {
        ensure!(
            before.is_none_or(|before| before <= now() + SKEW),
            "--before {} has not come yet, and whatever the workload gets until then would be worth nothing either: write \
             --before now, or leave it out to revoke the identity",
            args.before.as_deref().unwrap_or_default()
        );
        if !is_of_pod && !args.undo {
            doubt(asked, identity).await?;
        }
    }
    Ok(read)
}

/// Says so where an identity that was written by hand is nobody's: a slip of the pen revokes nothing, and looks as if it did.
async fn doubt(asked: &Asked, identity: &Identity) -> Result<()> {
    let mesh = mesh_configuration(asked).await?;
    let listed = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let own = own_domain(&mesh);
    let aliases = listed(&mesh["trustDomainAliases"]);
    let others: Vec<String> = mesh["caCertificates"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|ca| listed(&ca["trustDomains"]))
        .collect();
    let domain = identity.trust_domain().as_str();
    if domain != own && !aliases.iter().any(|alias| alias == domain) {
        if !others.iter().any(|other| other == domain) {
            eprintln!("note: nothing of trust domain {domain} is believed here; that of this mesh is {own}");
        }
        return Ok(());
    }
    let (namespace, account) = (identity.namespace(), identity.service_account());
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}");
    match asked.api.get(&path).await {
        Err(error) if error.is_not_found() => {
            eprintln!("note: there is no ServiceAccount {account} in namespace {namespace}");
        }
        // It is but a note.
        _ => {}
    }
    Ok(())
}

/// The identity of a Pod, and a word about those that share it.
async fn identity_of_pod(asked: &Asked, pod: &str, namespace: Option<&str>) -> Result<String> {
    let api = &asked.api;
    let pod = admin::find_pod(api, pod, namespace).await?;
    let list = format!("/api/v1/namespaces/{}/pods", pod.namespace);
    let found = match api.get(&format!("{list}/{}", pod.name)).await {
        Err(error) if error.is_not_found() => bail!(
            "there is no Pod {} in namespace {}; name a workload as deploy/NAME.NAMESPACE, or the identity itself",
            pod.name,
            pod.namespace
        ),
        found => found?,
    };
    let account = account(&found);
    let all = api.get(&list).await?;
    let same = |other: &&Value| crate::commands::ca::revoke::account(other) == account;
    let others = all["items"].as_array().into_iter().flatten().filter(same).count();
    if others > 1 {
        eprintln!("note: {others} Pods of namespace {} run as ServiceAccount {account}", pod.namespace);
    }
    let mesh = mesh_configuration(asked).await?;
    let domain = own_domain(&mesh);
    Ok(format!("spiffe://{domain}/ns/{}/sa/{account}", pod.namespace))
}

fn account(pod: &Value) -> String {
    pod["spec"]["serviceAccountName"].as_str().filter(|name| !name.is_empty()).unwrap_or("default").to_owned()
}

/// The mesh configuration as it is stored.
async fn mesh_configuration(asked: &Asked) -> Result<Value> {
    let stored = asked.object("configmaps", "istio").await?;
    let text = stored.as_ref().and_then(|object| object["data"]["mesh"].as_str()).unwrap_or_default();
    match text.trim().is_empty() {
        true => Ok(Value::Null),
        false => serde_saphyr::from_str(text).context("the mesh configuration (ConfigMap istio) is no YAML"),
    }
}

/// The mesh's own trust domain, as its configuration says it.
fn own_domain(mesh: &Value) -> &str {
    mesh["trustDomain"].as_str().filter(|domain| !domain.is_empty()).unwrap_or("cluster.local")
}

fn entry_of(target: &Revoked) -> Entry {
    match target {
        Revoked::Serial(serial) => Entry { serial: Some(serial.clone()), ..Entry::default() },
        Revoked::Identity(identity, before) => Entry {
            identity: Some(format!("spiffe://{identity}")),
            before: before.map(moment),
            ..Entry::default()
        },
    }
}

fn told(target: &Revoked) -> String {
    match target {
        Revoked::Serial(serial) => format!("certificate {serial}"),
        Revoked::Identity(identity, None) => format!("spiffe://{identity}"),
        Revoked::Identity(identity, Some(before)) => {
            format!("what was issued to spiffe://{identity} before {}", moment(*before))
        }
    }
}

/// Who orders it: as the API knows the caller, else as this machine does.
async fn who(asked: &Asked) -> Option<String> {
    let review =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview", "metadata": {}});
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let known = asked.api.create(path, &review).await.ok();
    let name = known.as_ref().and_then(|review| review["status"]["userInfo"]["username"].as_str());
    let name = name.map(str::to_owned).or_else(|| std::env::var("USER").ok());
    name.filter(|name| !name.is_empty())
}

/// Attempts at writing a list that others write, too.
const ATTEMPTS: usize = 10;

/// Changes the list, by what was read of it: if somebody else changed it meanwhile, it is read again.
async fn write(asked: &Asked, change: &Change) -> Result<Kept> {
    let name = revocation::CONFIG_MAP;
    let path = asked.path("configmaps", name);
    for _ in 0..ATTEMPTS {
        let stored = asked.object("configmaps", name).await.with_context(|| format!("cannot read {name}"))?;
        let text = stored.as_ref().and_then(|object| object["data"][revocation::KEY].as_str());
        let kept = list::changed(text, change)?;
        if !kept.changed {
            return Ok(kept);
        }
        ensure!(
            kept.entries <= revocation::MAX_ENTRIES,
            "the list is full: it holds {} revocations; take those back whose certificates have ended",
            revocation::MAX_ENTRIES
        );
        let mut object = stored.clone().unwrap_or_else(|| {
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": asked.namespace}})
        });
        object["data"][revocation::KEY] = json!(kept.text);
        // The version that was read goes back with it.
        let written = match stored {
            Some(_) => asked.api.replace(&path, &object).await,
            None => asked.api.create(&asked.collection("configmaps"), &object).await,
        };
        match written {
            Ok(_) => return Ok(kept),
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(error).with_context(|| format!("cannot write {name}")),
        }
    }
    bail!("ConfigMap {name} changed {ATTEMPTS} times while this tried to change it; try again")
}
